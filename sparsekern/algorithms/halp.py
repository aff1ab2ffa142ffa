"""HALP: the channels of most importance that fit into a latency, removed step by step, then fine-tuned."""
from dataclasses import dataclass

from sparsekern.algorithms.under_latency import UnderLatency
from sparsekern.sparsity import schedules
from sparsekern.sparsity.optim_state import shaped_state
from sparsekern.sparsity.sparsifier import Sparsifier, SparsifierConfig
from sparsekern.sparsity.timeline import FOREVER, Moment, Phase, Timeline, View

PRUNE, TUNE = "prune", "tune"           # the phases: up to a pruning, and after the last one


@dataclass(kw_only=True)
class HALPConfig(SparsifierConfig):
    latency: float | str = 0.55         # target, a fraction of the whole net's latency, or milliseconds ("12.5ms")
    table: str | None = None            # path of the model's latency table
    bundle: int = 8                     # channels that come and go together
    min_keep: int = 1                   # bundles that every group of channels keeps
    keep_first: bool = False            # leave the first convolution's channels whole
    other_machine: bool = False         # accept a latency table that was measured on another machine
    prunings: int | None = None         # on the way to the target; default: 30, fewer in a run of less than 300 steps
    every: int | None = None            # steps before each of them; default: 40, or what half of a shorter run allows
    skip_first: bool = False            # of no use here: channels are chosen in groups
    metrics: bool = False               # measure the inner product of consecutive gradients


class HALP(UnderLatency, Sparsifier):
    """Latency-aware pruning of channels.

    The targets fall exponentially from the full latency to the budget. At each, a knapsack over bundles of channels keeps the most importance
    (first-order Taylor term of the norms, in the mean over the steps since the last pruning) that fits. What is removed stays removed, and
    what is left trains on. Usually from a pretrained model.

    Args:
        model, optimizer: see Sparsifier.
        fields: those of HALPConfig; `total_steps` and `table` are needed.
    Source: Shen et al., Structural Pruning via Latency-Saliency Knapsack (HALP), 2022, as IEE quotes it for its baseline; one choice per group
        of layers in place of one per bundle makes the knapsack exact.
    """
    Config = HALPConfig
    config: HALPConfig

    def make_timeline(self) -> Timeline:
        c, here = self.config, View(self.net, self.net)
        c.prunings = min(30, max(1, c.total_steps // 10)) if c.prunings is None else c.prunings
        c.every = max(1, min(40, c.total_steps // (2 * max(1, c.prunings)))) if c.every is None else c.every
        if c.prunings < 1 or c.every < 1 or c.prunings * c.every > c.total_steps:
            raise ValueError(f"prunings, every: expected at least 1 each, and their product within the {c.total_steps} steps of the run, got "
                             f"{c.prunings} and {c.every}")
        whole = self.target >= self.budget.table.full_ms
        return Timeline((Phase(PRUNE, c.every, here),), 0 if whole else c.prunings, Phase(TUNE, FOREVER, here))

    @property
    def net(self) -> str:
        """The name of the one net."""
        return self.subnets[0]

    def observe(self) -> None:
        if self.timeline.at(self.steps).phase.name == PRUNE:
            self.taylor.add()

    def aim(self, pruning: int) -> float:
        """Milliseconds allowed after the pruning of that number, counted from 0."""
        last = pruning + 1 >= self.config.prunings
        return self.target if last else schedules.exponential(pruning + 1, self.budget.table.full_ms, self.target, 0, self.config.prunings)

    def on_phase_end(self, moment: Moment) -> None:
        if moment.phase.name != PRUNE:
            return
        self.refuse_nan()
        before = sum(self.masks.counts(self.net))
        masks, counts = self.channels.expand(self.budget.choose_keep(self.keep, self.taylor.mean(), self.aim(moment.cycle)))
        self.taylor.clear()
        self.masks.write(self.net, masks, counts)
        for weight, mask in zip(self.weights, self.masks[self.net]):
            for tensor in (weight, *shaped_state(self.optimizer, weight).values()):
                tensor.masked_fill_(~mask, 0)
        self.history.append({"step": self.steps, "subnet": self.net, "event": moment.cycle + 1, "kind": PRUNE,
                             "sparsity": self.masks.sparsity(self.net), "flips": [before - sum(counts)], "nnz": self.masks.counts(self.net),
                             "latency_ms": self.latency_ms, "target_ms": self.aim(moment.cycle), "channels": self.masks.kept(self.net)})
