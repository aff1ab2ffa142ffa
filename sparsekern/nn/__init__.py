"""Modules and their parts over the ops."""
from sparsekern.nn.nm_conv2d import NMConv2d, PackedNMConv2d
from sparsekern.nn.nm_linear import NMLinear, PackedNMLinear
from sparsekern.nn.nm_packed import PackedNM
from sparsekern.nn.nm_weight import NMWeight
from sparsekern.nn.sparse_conv2d import SparseConv2d
from sparsekern.nn.sparse_linear import SparseLinear
from sparsekern.nn.sparse_weight import SparseWeight
from sparsekern.nn.switchable_norm import NormBanks, find_norms

__all__ = ["NMConv2d", "NMLinear", "NMWeight", "NormBanks", "PackedNM", "PackedNMConv2d", "PackedNMLinear", "SparseConv2d", "SparseLinear",
           "SparseWeight", "find_norms"]
