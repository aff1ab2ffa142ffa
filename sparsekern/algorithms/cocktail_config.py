"""The settings of Sparse Cocktail: what they may be, and what follows from them."""
import math
from collections.abc import Sequence
from dataclasses import dataclass

from sparsekern.sparsity.patterns import NM
from sparsekern.sparsity.sparsifier import SparsifierConfig


@dataclass(kw_only=True)
class SparseCocktailConfig(SparsifierConfig):
    stages: int = 10                    # S: of sparse training, each with a sparser unstructured and channel sub-net; the dense stage comes before
    rate: float | Sequence[float] = 0.2         # unstructured: share of what is left that a stage prunes; or one number a stage
    channel_rate: float | Sequence[float] = 0.1 # the same for channels
    nm: str | Sequence[str] = "1:2,2:4,4:8"     # n:m sub-nets, n kept of m
    nm_stages: Sequence[int] | None = None      # the stage from which each of them trains; default: spread over the run, 2, 5 and 8 of 10
    stage_steps: int | None = None      # steps of a stage; default: total_steps / (stages + 1); the dense stage gets the rest
    rewind_steps: int | None = None     # steps before the snapshot that every stage starts from; default: 8/150 of a stage
    beta: float = 0.8                   # share of the unstructured mask in a channel's score; the rest is the n:m mask's
    coupled: bool = True                # layers whose outputs are added share a choice of channels, which can be removed then; false: as in the paper
    shape: Sequence[int] | None = None  # of one input, to find what is coupled; default: an image of 32 x 32, a vector for linear layers
    linear: bool = False                # prune linear layers, too
    bn: str = "pattern"                 # norms of their own for every sub-net, or shared: one for all, as in the paper's code
    umg: bool = True                    # unified masks; false: channels by |scale| of the norm behind them, or by the filter's norm
    naive_refill: bool = False          # score channels by the unstructured mask alone
    pivot: bool = True                  # dense mini-batches between the sparse ones; false: none, and no distillation
    distill: bool = True                # the dense net teaches the sparse ones
    rewind: bool = True                 # false: every stage goes on from the one before, with its momentum
    interpolate: bool = True            # false: the last stage's weights serve every mask
    score_batches: int = 2              # that norms are measured on before a candidate of the merge is judged; 0: merged statistics (and bn=shared)
    skip_last: bool = True              # leave the last linear layer dense
    leaky: bool = True                  # momentum and weight decay also move what the masks hide
    metrics: bool = False               # measure the inner product of consecutive gradients

    def settle(self) -> None:
        """Check what stands by itself, and fill in the n:m patterns and their stages.

        Raises:
            ValueError: naming the setting.
        """
        for name in ("stages", "stage_steps", "rewind_steps", "score_batches"):
            value = getattr(self, name)
            if not (isinstance(value, int) or (value is None and getattr(type(self), name) is None)):
                raise ValueError(f"{name}: expected a whole number, got {value!r}")
        if self.stages < 1:
            raise ValueError(f"stages: expected at least 1, got {self.stages}")
        self.ladder("rate"), self.ladder("channel_rate")
        patterns = NM.parse_all(self.nm) if self.nm else []
        self.nm = list(dict.fromkeys(map(str, patterns)))
        n, shift = len(self.nm), 2 if self.stages > len(self.nm) else 1
        if n < len(patterns) or n > self.stages:
            raise ValueError(f"nm: expected different patterns, at most one for each of the {self.stages} stages, got "
                             f"{', '.join(map(str, patterns))}")
        stages = [i * self.stages // n + shift for i in range(n)] if self.nm_stages is None else self.nm_stages
        self.nm_stages = list(stages) if isinstance(stages, Sequence) else [stages]
        if len(self.nm_stages) != n or sorted(set(self.nm_stages)) != self.nm_stages or not set(self.nm_stages) <= {*range(1, self.stages + 1)}:
            raise ValueError(f"nm_stages: expected {n} rising numbers of stages from 1 to {self.stages}, got {self.nm_stages}")
        if not 0.0 <= self.beta <= 1.0:
            raise ValueError(f"beta: expected a share in [0, 1], got {self.beta}")
        if self.bn not in ("pattern", "shared"):
            raise ValueError(f"bn: expected 'pattern' or 'shared', got {self.bn!r}")
        if self.naive_refill and (not self.umg or self.beta != type(self).beta):
            raise ValueError("naive_refill: channels are scored by the unstructured mask alone; it takes no beta, and needs umg")
        if self.score_batches < 0:
            raise ValueError(f"score_batches: expected a number of batches, at least 0, got {self.score_batches}")
        self.norm_banks &= self.bn == "pattern"

    def settle_steps(self, turns: int) -> None:
        """Fill in the steps of a stage, in which `turns` mini-batches take turns, and those before the snapshot."""
        self.stage_steps = self.total_steps // (self.stages + 1) if self.stage_steps is None else self.stage_steps
        if self.stage_steps < turns or self.dense_steps < 1:
            raise ValueError(f"stage_steps: expected at least {turns} for each of the {self.stages} stages, one for every turn, and at least 1 of "
                             f"the {self.total_steps} steps left for the dense stage, got {self.stage_steps} and {self.dense_steps}")
        self.rewind_steps = max(1, round(self.stage_steps * 8 / 150)) if self.rewind_steps is None else self.rewind_steps
        if not 1 <= self.rewind_steps <= self.dense_steps:
            raise ValueError(f"rewind_steps: expected 1 to {self.dense_steps}, the steps of the dense stage, got {self.rewind_steps}")

    @property
    def dense_steps(self) -> int:
        """Steps of stage 0."""
        return self.total_steps - self.stages * self.stage_steps

    def ladder(self, name: str) -> dict[int, float]:
        """{stage: share of zeros} from the setting `name`: 1 - (1 - rate)^k, or 1 - (1 - rate_1) ... (1 - rate_k)."""
        rate = getattr(self, name)
        several = isinstance(rate, Sequence) and not isinstance(rate, str)
        if several and len(rate) != self.stages:
            raise ValueError(f"{name}: expected one number, or one for each of the {self.stages} stages, got {rate}")
        if not all(isinstance(value, int | float) and 0.0 <= value < 1.0 for value in (rate if several else [rate])):
            raise ValueError(f"{name}: expected shares in [0, 1) that a stage prunes of what is left, got {rate!r}")
        return {k: 1.0 - (math.prod(1.0 - value for value in rate[:k]) if several else (1.0 - rate) ** k) for k in range(1, self.stages + 1)}
