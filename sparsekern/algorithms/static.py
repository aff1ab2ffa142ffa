"""Static: a random sparse net whose connections never change. The yardstick that any moving of connections has to beat."""
from sparsekern.sparsity.dynamic import SparseStart


class Static(SparseStart):
    """A random fixed mask of exact sparsity.

    Args:
        model, optimizer: see Sparsifier.
        fields: those of SparseStartConfig; `total_steps` is needed.
    """
