"""Gradual magnitude pruning of one net by one global ranking: what a sub-net of AST-GC is when it is trained alone."""
from dataclasses import dataclass

from sparsekern.algorithms.ast_gc import AST_GC, ASTGCConfig


@dataclass(kw_only=True)
class MagnitudeConfig(ASTGCConfig):
    sparsity: float = 0.9
    nm: str = "2:4"                     # with pattern nm: n kept of m
    gc: bool = False
    metrics: bool = False
    prune_fraction: float = 0.0         # 0.5 adds the exchange of weights at every event


class Magnitude(AST_GC):
    """The schedule and ranking of AST-GC for a single sub-net."""
    Config = MagnitudeConfig
