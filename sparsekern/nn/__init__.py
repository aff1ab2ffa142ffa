"""Modules and their parts over the ops."""
from sparsekern.nn.switchable_norm import NormBanks, find_norms

__all__ = ["NormBanks", "find_norms"]
