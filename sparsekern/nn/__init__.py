"""Modules and their parts over the ops."""
from sparsekern.nn.sparse_conv2d import SparseConv2d
from sparsekern.nn.sparse_linear import SparseLinear
from sparsekern.nn.sparse_weight import SparseWeight
from sparsekern.nn.switchable_norm import NormBanks, find_norms

__all__ = ["NormBanks", "SparseConv2d", "SparseLinear", "SparseWeight", "find_norms"]
