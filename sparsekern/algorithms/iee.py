"""IEE: iterative exploitation and exploration (Advancing Weight and Channel Sparsification with Enhanced Saliency).

A cycle has three phases. H trains the active net; then its least important part is pruned. J trains what is left. Q switches everything
on and trains only what is not active, from the values it had last; then the most important part of that is grown by the same score.
After the cycles the net trains on unchanged.
"""
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsekern import ops
from sparsekern.algorithms.iee_channel import ChannelForm
from sparsekern.algorithms.iee_form import Form, Weights
from sparsekern.algorithms.iee_nm import Groups
from sparsekern.sparsity import schedules
from sparsekern.sparsity.layers import Layer
from sparsekern.sparsity.masks import MaskSet
from sparsekern.sparsity.optim_state import shaped_state
from sparsekern.sparsity.past_masks import PastMasks
from sparsekern.sparsity.patterns import Pattern, refuse_settings
from sparsekern.sparsity.scores import Sources, score
from sparsekern.sparsity.sparsifier import Sparsifier, SparsifierConfig
from sparsekern.sparsity.timeline import ALL, FOREVER, Moment, Phase, Timeline, View, rest

FORMS: dict[str, type[Form]] = {"unstructured": Weights, "nm": Groups, "channel": ChannelForm}
H, J, Q = "estimate", "improve", "explore"              # the phases by their names in the paper
LEAD = "approach"                                       # before the cycles: from a pretrained model to the budget
_SHORT_RUN = 8                                          # cycles that the default phases leave room for
_LONGEST = 150                                          # steps of a phase in the paper


@dataclass(kw_only=True)
class IEEConfig(SparsifierConfig):
    pattern: str = "unstructured"       # what is pruned: unstructured (single weights), nm (n of every m neighbours are kept) or channel
    nm: str = "2:4"                     # with pattern nm: n kept of m (or "zeros 3:4" for 1:4)
    sparsity: float = 0.9               # unstructured: fraction of zeros over all prunable weights
    allocation: str = "erk"             # unstructured: erk, er or uniform (budgets per layer), or nonuniform (one ranking of all layers)
    first_allocation: str = "erk"       # unstructured: where nonuniform starts: erk, er or uniform
    start: str | None = None            # how the first net is chosen: random (the default), or magnitude (that of nm; for a pretrained model)
    latency: float | str = 0.55         # channel: target, a fraction of the whole net's latency, or milliseconds ("12.5ms")
    table: str | None = None            # channel: path of the model's latency table
    bundle: int = 8                     # channel: channels that come and go together
    min_keep: int = 1                   # channel: bundles that every group of channels keeps
    keep_first: bool = False            # channel: leave the first convolution's channels whole
    other_machine: bool = False         # channel: accept a latency table that was measured on another machine
    approach: int | None = None         # channel, start=magnitude: prunings on the way to the budget; default: 30, fewer in a short run
    approach_every: int | None = None   # and the steps between them; default: 40, or as many as make a tenth of a short run
    h_steps: int | None = None          # steps of phase H, importance estimation; default: 150, or as many as leave room for 8 cycles
    j_steps: int | None = None          # steps of phase J, accuracy improvement; default: those of H
    q_steps: int | None = None          # steps of phase Q, exploration; default: those of H
    end: int | None = None              # cycles end by this step; default: 3/4 of the run
    update_budget: float = 0.3          # share of the budget pruned and grown in the first cycle
    update_schedule: str | None = None  # of that share: cosine (to 0 at the end, the default) or exponential (to update_budget_end)
    update_budget_end: float = 0.005    # where the exponential schedule ends
    score: str | None = None            # importance: magnitude (the default), or mean_magnitude (its mean over the phase)
    freeze: bool = True                 # in phase Q only what is explored changes; false: everything trains
    accuracy_improvement: bool = True   # false: no phase J
    growth: str = "score"               # what grows: score (the most important), or random
    zero_init: bool = False             # what grows starts at 0 and not at its explored value
    skip_first: bool = False            # leave the first convolution dense
    metrics: bool = False               # measure the inner product of consecutive gradients


class IEE(Sparsifier):
    """Iterative exploitation and exploration.

    In phase Q the forward pass is dense, the active weights and everything that is not prunable stand still (with their momentum, and the
    running statistics of norms), and the rest trains with a momentum that starts at 0 and is thrown away. Pruned weights keep their
    values. Events take place after the update of a phase's last step, also when a gradient scaler threw that update away.

    Args:
        model, optimizer: see Sparsifier.
        fields: those of IEEConfig; `total_steps` is needed.
    Source: Sun et al., Advancing Weight and Channel Sparsification with Enhanced Saliency, section 3. What it leaves open is decided as
        the fields and the forms (`iee_form.py`) say.
    """
    Config = IEEConfig
    config: IEEConfig

    # What the engine asks.

    def find_layers(self) -> list[Layer]:
        if self.config.pattern not in FORMS:
            raise ValueError(f"pattern: expected one of {', '.join(FORMS)}, got {self.config.pattern!r}")
        for pattern, form in FORMS.items():
            if pattern != self.config.pattern:
                refuse_settings(self.config, pattern, *form.own)
        self.form: Form = FORMS[self.config.pattern](self)
        return self.form.find_layers()

    def make_masks(self) -> MaskSet:
        return self.form.make_masks()

    def make_patterns(self) -> dict[str, Pattern]:
        c, form = self.config, self.form
        c.update_schedule, c.score, c.start = c.update_schedule or form.schedule, c.score or form.score, c.start or form.first
        for name, value, known in (("update_schedule", c.update_schedule, ("cosine", "exponential")), ("score", c.score, form.scores),
                                   ("growth", c.growth, ("score", "random")), ("start", c.start, ("random", "magnitude"))):
            if value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
        if not 0.0 < c.update_budget <= 1.0 or not 0.0 < c.update_budget_end <= 1.0:
            raise ValueError(f"update_budget, update_budget_end: expected shares in (0, 1], got {c.update_budget} and {c.update_budget_end}")
        for name, used, needed in (("update_budget_end", c.update_schedule == "exponential", "update_schedule='exponential'"),
                                   ("first_allocation", c.allocation == "nonuniform", "allocation='nonuniform'"),
                                   ("approach", c.start == "magnitude", "start='magnitude'"),
                                   ("approach_every", c.start == "magnitude", "start='magnitude'")):
            if not used and getattr(c, name) != getattr(IEEConfig, name):
                raise ValueError(f"{name}: {getattr(c, name)!r} has no effect without {needed}")
        if c.leaky:
            raise ValueError("leaky: IEE explores from the values that weights had when they were pruned, so nothing may move them while they "
                             "are hidden; leave it off")
        return form.make_patterns()

    def make_timeline(self) -> Timeline:
        c, net = self.config, self.net
        lead = tuple(Phase(LEAD, steps, View(net, net)) for steps in self.form.lead())
        before = sum(phase.steps for phase in lead)
        c.end = before + int(self.form.until * (c.total_steps - before)) if c.end is None else c.end
        if not 0 <= c.end <= c.total_steps:
            raise ValueError(f"end: expected a step from 0 to total_steps ({c.total_steps}), got {c.end}")
        c.h_steps = max(1, min(_LONGEST, (c.end - before) // (3 * _SHORT_RUN))) if c.h_steps is None else c.h_steps
        c.j_steps = 0 if not c.accuracy_improvement else c.h_steps if c.j_steps is None else c.j_steps
        c.q_steps = c.h_steps if c.q_steps is None else c.q_steps
        if c.h_steps < 1 or c.j_steps < 0 or c.q_steps < 1:
            raise ValueError(f"h_steps, j_steps, q_steps: expected at least 1, 0 and 1, got {c.h_steps}, {c.j_steps}, {c.q_steps}")
        self.cycles = (c.end - before) // self.period if self.form.explores() else 0
        if self.cycles < 1 and self.form.explores():
            raise ValueError(f"end: no cycle of {c.h_steps} + {c.j_steps} + {c.q_steps} steps fits before step {c.end}; shorten the phases or "
                             f"train for more than {c.total_steps} steps")
        here, explore = View(net, net), View(ALL, rest(net), frozen=True) if c.freeze else View(ALL, ALL)
        return Timeline((Phase(H, c.h_steps, here), Phase(J, c.j_steps, here), Phase(Q, c.q_steps, explore)), self.cycles,
                        Phase("train", FOREVER, here), lead)

    def setup(self) -> None:
        self.past = PastMasks(self.masks.layers)
        self._sums: list[Tensor] | None = None                      # of the score over the phase at hand
        with torch.no_grad():
            self.form.start()

    @property
    def net(self) -> str:
        """The name of the one net."""
        return self.subnets[0]

    @property
    def period(self) -> int:
        """Steps of a cycle."""
        return self.config.h_steps + self.config.j_steps + self.config.q_steps

    @property
    def phase(self) -> str:
        """The phase of the step at hand: estimate (H), improve (J), explore (Q), or train after the cycles."""
        return self.timeline.at(self.steps).phase.name

    # Scores and events.

    def observe(self) -> None:
        if self.config.score == "mean_magnitude" and self.phase in (H, Q):
            self._sums = self._summed()
        self.form.observe()

    def _summed(self) -> list[Tensor]:
        now = torch._foreach_abs([weight.detach().float() for weight in self.weights])
        return now if self._sums is None else torch._foreach_add(self._sums, now)

    def scores(self) -> list[Tensor]:
        """Per layer what the event at hand ranks by magnitude: the score, or random numbers for growth="random" after phase Q."""
        c = self.config
        if c.growth == "random" and self.phase == Q:
            return score("random", Sources(self.weights, seed=c.seed, step=self.steps))
        return self._summed() if c.score == "mean_magnitude" else score(c.score, Sources(self.weights))

    def share(self, cycle: int) -> float:
        """Share of the budget that a cycle exchanges."""
        c = self.config
        if c.update_schedule == "cosine":
            return schedules.cosine_drop(cycle, c.update_budget, self.cycles)
        return schedules.exponential(cycle, c.update_budget, c.update_budget_end, 0, self.cycles)

    def on_phase_end(self, moment: Moment) -> None:
        if moment.phase.name not in (LEAD, H, Q):
            return
        self.refuse_nan()
        c, net, prunes = self.config, self.net, moment.phase.name != Q
        share = 0.0 if moment.phase.name == LEAD else self.share(moment.cycle)
        before = [mask.clone() for mask in self.masks[net]]
        if moment.phase.name == LEAD:
            after, counts = self.form.approach(moment.position)
        else:
            after, counts = self.form.prune(share) if prunes else self.form.grow(share)
        self._sums = None
        self.masks.write(net, after, counts)
        grown = [new & ~old for old, new in zip(before, after)]
        for weight, old, new, come in zip(self.weights, before, after, grown):
            for state in shaped_state(self.optimizer, weight).values():         # what was pruned, explored or grown has no momentum
                state.masked_fill_(~(old & new), 0)
            if c.zero_init and not prunes:
                weight.masked_fill_(come, 0)
        self._record(moment, share, before, after, grown)

    def _record(self, moment: Moment, share: float, before: list[Tensor], after: list[Tensor], grown: list[Tensor]) -> None:
        kind = {LEAD: LEAD, H: "prune", Q: "grow"}[moment.phase.name]
        event = moment.position + 1 if kind == LEAD else moment.cycle + 1
        sizes = ops.mask_stats(before, after)
        record = {"step": self.steps, "subnet": self.net, "event": event, "kind": kind, "sparsity": self.masks.sparsity(self.net),
                  "fraction": share, "flips": sizes[:, 3].tolist(), "nnz": self.masks.counts(self.net), "iou": self.past.iou(kind, after)}
        self.past.keep(kind, after)
        if kind == "prune":
            record["survival"] = self.past.left("grown", after)
        elif kind == "grow":
            record["grown"] = (sizes[:, 1] - sizes[:, 2]).tolist()
            self.past.keep("grown", grown)
        self.history.append(record | self.form.record())

    def slim(self) -> nn.Module:
        """The active net as a plain, physically smaller model (pattern="channel" only); this sparsifier is removed."""
        return self.form.slim()

    def metrics(self) -> dict:
        """Adds "training_flops": by the paper's formula, and by what the products of phase Q really need, the multiples of the forward FLOPs
        of the sparse and of the dense net that a training step costs per sample in the mean over the run."""
        c = self.config
        shares = [self.cycles * steps / c.total_steps for steps in (c.h_steps + c.j_steps, c.q_steps)]
        shares.append(1.0 - sum(shares))
        explore = {"paper": (2, 1), "honest": (-1, 3) if c.freeze else (0, 3)}
        return super().metrics() | {"training_flops": {
            name: {"sparse": 3 * shares[0] + sparse * shares[1] + 3 * shares[2], "dense": dense * shares[1]}
            for name, (sparse, dense) in explore.items()}}

    # The way to disk and back.

    def extra_state(self) -> dict:
        return {"form": self.form.extra_state()}

    def load_extra_state(self, values: dict) -> None:
        self.form.load_extra_state(values["form"])

    def extra_tensors(self) -> dict[str, Tensor]:
        sums = {f"score/{name}": value for name, value in zip(self.masks.layers, self._sums or ())}
        return self.past.tensors() | sums | {f"form/{key}": value for key, value in self.form.extra_tensors().items()}

    def load_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.past.load(tensors, self.weights)
        self._sums = [tensors[f"score/{name}"].to(weight.device, copy=True) for name, weight in zip(self.masks.layers, self.weights)] \
            if f"score/{self.masks.layers[0]}" in tensors else None
        self.form.load_extra_tensors({key.removeprefix("form/"): value for key, value in tensors.items() if key.startswith("form/")})
