"""sparsekern: sparse neural network training that is really faster and really sparse."""
from sparsekern import nn, ops
from sparsekern._version import __version__
from sparsekern.algorithms import AST_GC, GSE, HALP, IEE, SET, RigL, SparseCocktail, Static
from sparsekern.sparsity import pack_nm, sparsify, sparsify_nm

__all__ = ["AST_GC", "GSE", "HALP", "IEE", "RigL", "SET", "SparseCocktail", "Static", "SubnetBank", "__version__", "nn", "ops", "pack_nm",
           "sparsify", "sparsify_nm"]


def __getattr__(name: str):
    if name == "SubnetBank":                               # on first use: training needs nothing of deploy
        from sparsekern.deploy import SubnetBank
        return SubnetBank
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
