"""What a sub-net's mask must look like: small frozen records."""
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sparsekern.ops.nm_mask import LARGEST_GROUP


@dataclass(frozen=True)
class Whole:
    """Every weight: the dense net among its sub-nets."""
    sparsity: float = 0.0

    def __str__(self) -> str:
        return "dense"


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


@dataclass(frozen=True)
class NM:
    """`keep` of every `group` neighbours along the input channels are kept; written "2:4" for 2 kept of 4, everywhere."""
    keep: int
    group: int

    def __post_init__(self):
        if not 1 <= self.group <= LARGEST_GROUP:
            raise ValueError(f"nm: expected groups of 1 to {LARGEST_GROUP} weights, got {self}")
        if not 1 <= self.keep <= self.group:
            raise ValueError(f"nm: expected 1 to {self.group} weights kept of each group, got {self}; n is the number kept, not that of zeros")

    def __str__(self) -> str:
        return f"{self.keep}:{self.group}"

    @property
    def sparsity(self) -> float:
        """Fraction of zeros."""
        return 1.0 - self.keep / self.group

    def nnz(self, numel: int) -> int:
        """How many of `numel` weights are kept; ValueError where they are no whole groups."""
        if numel % self.group:
            raise ValueError(f"nm: {self}: expected whole groups of {self.group}, got {numel} weights")
        return numel // self.group * self.keep

    @classmethod
    def parse(cls, text: str) -> "NM":
        """"2:4" keeps 2 of 4. A count of zeros, as some papers write it, has to say so: "zeros 3:4" keeps 1 of 4."""
        if not isinstance(text, str):
            raise TypeError(f"nm: expected a text such as '2:4', got {text!r}; YAML reads an unquoted 2:4 as a number")
        found = re.fullmatch(r"(zeros\s+)?(\d+):(\d+)", text.strip(), re.ASCII)
        if found is None:
            raise ValueError(f"nm: expected n:m for n kept of m, such as '2:4', or the zeros of m, such as 'zeros 3:4', got {text!r}")
        counted, group = int(found[2]), int(found[3])
        if found[1] and not 0 <= counted < group:
            raise ValueError(f"nm: expected fewer zeros than the {group} weights of a group, got {text!r}")
        return cls(group - counted if found[1] else counted, group)

    @classmethod
    def parse_all(cls, texts: str | Sequence[str]) -> "list[NM]":
        """The patterns of a list, or of a text with commas: "2:4,1:4,1:8"."""
        parts = texts.split(",") if isinstance(texts, str) else texts if isinstance(texts, Sequence) else [texts]
        return [cls.parse(part) for part in parts]


Pattern = Whole | Unstructured | NM


def refuse_settings(config, pattern: str, *names: str) -> None:
    """ValueError for the first of these settings that is not at its default: it belongs to `pattern`, and config.pattern is another one."""
    for name in names:
        value = getattr(config, name)
        if value != getattr(type(config), name):
            raise ValueError(f"{name}: belongs to pattern={pattern!r}, got {value!r} with pattern={config.pattern!r}")


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
