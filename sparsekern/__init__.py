"""sparsekern: sparse neural network training that is really faster and really sparse."""
from sparsekern import ops
from sparsekern._version import __version__

__all__ = ["__version__", "ops"]
