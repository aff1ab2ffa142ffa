"""IEE's structured form: whole channels under a latency that a table of measurements tells."""
from torch import Tensor

from sparsekern.algorithms.iee_form import Form
from sparsekern.algorithms.under_latency import UnderLatency
from sparsekern.sparsity import schedules
from sparsekern.sparsity.counter_rng import uniform
from sparsekern.sparsity.layers import Layer
from sparsekern.sparsity.sparsifier import Sparsifier

_APPROACH, _EVERY = 30, 40              # HALP's prunings of a pretrained model, and the steps between them


class ChannelForm(UnderLatency, Form):
    """Output channels in coupled groups, chosen by a knapsack over bundles: the most importance within the latency budget.

    Importance is the first-order Taylor term of the norms, in the mean over the phase. PRUNE keeps what fits into the target less the share
    of this cycle (never less than the smallest net), GROW fills up to the target with what phase Q explored. From scratch the first net is
    a random one of uniform width. With start="magnitude" a pretrained model is first pruned step by step by the same importance, the
    targets falling exponentially from the full latency to the budget.
    """
    own = "latency", "table", "bundle", "min_keep", "keep_first", "other_machine", "approach", "approach_every"
    until = 5 / 130
    schedule = "exponential"
    score = "taylor"
    scores = ("taylor",)

    @property
    def engine(self) -> Sparsifier:
        return self.s

    def find_layers(self) -> list[Layer]:
        if self.s.config.zero_init:
            raise ValueError("zero_init: a channel whose weights, scale and shift are 0 never gets a gradient; leave it off")
        return super().find_layers()

    def explores(self) -> bool:
        return self.target < self.budget.table.full_ms

    def lead(self) -> list[int]:
        """Steps before each pruning on the way from a pretrained model to the budget; empty from scratch."""
        c = self.s.config
        if c.start == "random" or not self.explores():
            return []
        events = min(_APPROACH, max(1, c.total_steps // 10)) if c.approach is None else c.approach
        every = max(1, min(_EVERY, c.total_steps // (10 * max(1, events)))) if c.approach_every is None else c.approach_every
        if events < 1 or every < 1 or events * every >= c.total_steps:
            raise ValueError(f"approach, approach_every: expected at least 1 each, and their product below the {c.total_steps} steps of the run, "
                             f"got {events} and {every}")
        return [every] * events

    def start(self) -> None:
        s = self.s
        keep = self.channels.whole() if self._leads else self.budget.uniform_keep(self.target, seed=s.config.seed)
        s.masks.write(s.net, *self.channels.expand(self.channels.whole() | keep))

    @property
    def _leads(self) -> bool:
        return bool(self.s.timeline.lead)

    def observe(self) -> None:
        if self.s.phase != "improve" and self.s.phase != "train":
            self.taylor.add()

    def approach(self, position: int) -> tuple[list[Tensor], list[int]]:
        """The active masks at the next target on the way from the full net to the budget."""
        events = len(self.s.timeline.lead)
        full = self.budget.table.full_ms
        aim = self.target if position + 1 == events else schedules.exponential(position + 1, full, self.target, 0, events)
        return self._pruned(aim)

    def prune(self, share: float) -> tuple[list[Tensor], list[int]]:
        return self._pruned(max(self.target * (1.0 - share), self.budget.limits()[0]))

    def _pruned(self, aim: float) -> tuple[list[Tensor], list[int]]:
        return self._expanded(self.budget.choose_keep(self.keep, self.taylor.mean(), aim))

    def grow(self, share: float) -> tuple[list[Tensor], list[int]]:
        c, importance = self.s.config, self.taylor.mean()
        if c.growth == "random":
            importance = {name: uniform(value, c.seed, index, self.s.steps) for index, (name, value) in enumerate(importance.items())}
        return self._expanded(self.budget.choose_grow(self.keep, importance, self.target))

    def _expanded(self, keep: dict[str, Tensor]) -> tuple[list[Tensor], list[int]]:
        self.taylor.clear()
        return self.channels.expand(keep)

    def record(self) -> dict:
        kept = self.s.masks.kept(self.s.net)
        return {"latency_ms": self.budget.total_ms(kept), "target_ms": self.target, "channels": kept,
                "effective_sparsity": self.channels.effective_sparsity(kept)}
