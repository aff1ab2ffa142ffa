"""What a sub-net's mask must look like: small frozen records."""
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Unstructured:
    """Any positions; exactly `nnz(numel)` of them are kept."""
    sparsity: float                     # fraction of zeros, in [0, 1)

    def __post_init__(self):
        if not 0.0 <= self.sparsity < 1.0:
            percent = f"; did you mean {self.sparsity / 100:g}?" if 1 < self.sparsity < 100 else ""
            raise ValueError(f"sparsity: expected a fraction of zeros in [0, 1), got {self.sparsity}{percent}")

    def __str__(self) -> str:
        return "unstructured"

    def nnz(self, numel: int) -> int:
        """How many of `numel` weights are kept."""
        return kept(numel, self.sparsity)


def single_sparsity(value: float | Sequence[float]) -> float:
    """The one number of an algorithm that trains one net; a list of one is one."""
    if isinstance(value, Sequence):
        if len(value) != 1:
            raise ValueError(f"sparsity: this algorithm trains one net, expected one number, got {list(value)}")
        value = value[0]
    return float(value)


def kept(numel: int, sparsity: float) -> int:
    """The one rounding rule: floor(density * numel + 1/2)."""
    return math.floor((1.0 - sparsity) * numel + 0.5)
