"""One paper, one file. `build` makes any of them by name."""
import torch
from torch import nn

from sparsekern.algorithms.ast_gc import AST_GC
from sparsekern.algorithms.dense import Dense
from sparsekern.algorithms.gse import GSE
from sparsekern.algorithms.halp import HALP
from sparsekern.algorithms.iee import IEE
from sparsekern.algorithms.magnitude import Magnitude
from sparsekern.algorithms.rigl import RigL
from sparsekern.algorithms.set import SET
from sparsekern.algorithms.sparse_cocktail import SparseCocktail
from sparsekern.algorithms.static import Static
from sparsekern.sparsity.sparsifier import Sparsifier

ALGORITHMS: dict[str, type[Sparsifier]] = {"ast-gc": AST_GC, "dense": Dense, "magnitude": Magnitude, "static": Static, "set": SET, "rigl": RigL,
                                          "gse": GSE, "iee": IEE, "halp": HALP, "sparse-cocktail": SparseCocktail}

__all__ = ["ALGORITHMS", "AST_GC", "GSE", "HALP", "IEE", "Dense", "Magnitude", "RigL", "SET", "SparseCocktail", "Static", "build"]


def build(name: str, model: nn.Module, optimizer: torch.optim.Optimizer, **fields) -> Sparsifier:
    """The algorithm called `name`, attached to a model and its optimizer; `fields` are those of its Config."""
    if name not in ALGORITHMS:
        raise ValueError(f"algorithm: expected one of {', '.join(ALGORITHMS)}, got {name!r}")
    return ALGORITHMS[name](model, optimizer, **fields)
