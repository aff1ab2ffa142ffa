"""Sparse Cocktail: unstructured, channel and n:m sub-nets at many ratios, and the dense net, in one set of weights.

Stage 0 trains the dense net. Each further stage makes sparser masks from the weights that the stage before ended with, takes weights and norms
back to an early snapshot, and trains dense and sparse mini-batches in turn, the dense net teaching the sparse ones. In the end the weights of
all stages are merged into one set that serves every mask (`finalize`).
"""
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from sparsekern import ops
from sparsekern.algorithms.cocktail_config import SparseCocktailConfig
from sparsekern.algorithms.cocktail_merge import Merge
from sparsekern.sparsity.allocation import global_masks
from sparsekern.sparsity.channel_choice import ChannelChoice, ChoiceMasks, example_input
from sparsekern.sparsity.channel_masks import ChannelShare
from sparsekern.sparsity.interpolation import POOL
from sparsekern.sparsity.layers import Layer
from sparsekern.sparsity.nm_groups import groupable
from sparsekern.sparsity.patterns import NM, Pattern, Unstructured, Whole, kept
from sparsekern.sparsity.sparsifier import Sparsifier
from sparsekern.sparsity.stage_store import StageStore
from sparsekern.sparsity.timeline import ALL, Moment, Phase, Stages, View

DENSE = "dense"
Found = dict[str, tuple[list[Tensor], list[int]]]       # masks and counts of the layers, by sub-net


class SparseCocktail(Sparsifier):
    """Sparse Cocktail. Sub-nets: "dense", "u1" to "uS", "c1" to "cS", and the n:m ones by their text.

        sparsifier = sparsekern.SparseCocktail(model, optimizer, total_steps=len(loader) * epochs, stages=3)
        sparsifier.use_directory("run/stages")                              # or the stages' weights stay in the host's memory
        for x, y in batches:
            first, steps = sparsifier.span(sparsifier.steps)                # what the learning rate's schedule spans
            sparsifier.loss(model, x, y, criterion).backward()
            sparsifier.step()
            optimizer.zero_grad()
        sparsifier.finalize(lambda name: accuracy(sparsifier, name, holdout), lambda: (x for x, _ in loader))

    Mini-batches of a stage: dense, unstructured, dense, channel, dense, n:m, and so on. Before the first n:m sub-net's stage its mask is all
    ones: such a step trains the dense net and its norms, with the loss of a sparse step. A sub-net is shown as the dense net until its stage,
    and with the norms of its last training step after it (until `finalize`). A stage that leaves a layer no weight or no channel is
    refused, when it is made or at the end of the stage before; masks, weights and norms are unchanged then. Masks take one byte for every
    weight and sub-net while it trains.

    Args:
        model, optimizer: see Sparsifier.
        fields: those of SparseCocktailConfig; `total_steps` is needed.
    Source: Sparse Cocktail, sections 3.2 to 3.6 and Algorithm 1. Where paper and code differ: true n:m rates, exact numbers of channels
        (their scales and shifts hidden, too), stored masks after merging, alpha = 1 in the pool, norms measured per sub-net in the end.
    """
    Config = SparseCocktailConfig
    config: SparseCocktailConfig
    holdout = 0.05

    # What the engine asks.

    def find_layers(self) -> list[Layer]:
        c = self.config
        c.settle()
        self.nm = {name: NM.parse(name) for name in c.nm}
        self.ladder = {"u": c.ladder("rate"), "c": c.ladder("channel_rate")}
        self._sparse = range(1, c.stages + 1)
        self.store = StageStore(None)
        self.digests: dict[str, str] = {}                           # of what was stored, by its name there
        self.alphas: list[float] = []                               # of the merge, from stage 2 on
        linear = {id(module.weight) for module in self.model.modules() if isinstance(module, nn.Linear)}
        self.prunable = [layer for layer in super().find_layers() if c.linear or id(layer.param) not in linear]
        if not self.prunable:
            raise ValueError("nothing to prune: no convolution is left by skip_first, only and exclude; linear=True prunes linear layers, too")
        pruned = {module for layer in self.prunable for module in layer.modules}
        ahead = list(takewhile(lambda module: module not in pruned, self.model.modules()))              # a norm behind a mask is no common one
        c.share_first_norm &= all(any(isinstance(module, kind) for module in ahead) for kind in ((nn.Conv2d, nn.Linear), _BatchNorm))
        self.channels = ChannelChoice(self.model, self.prunable, example_input(self.model, c.shape) if c.coupled else None)
        _, self.left_dense = groupable(self.prunable, list(self.nm.values()))
        self.left_dense |= {f"c{k}": self.channels.whole for k in self._sparse if self.channels.whole}
        numel = sum(layer.param.numel() for layer in self.prunable)
        for k in self._sparse:
            self.channels.check(self.ladder["c"][k], f"channel_rate: stage {k}")
            if kept(numel, self.ladder["u"][k]) < len(self.prunable):
                raise ValueError(f"rate: stage {k} would keep {kept(numel, self.ladder['u'][k])} weights of {len(self.prunable)} layers and prune "
                                 f"one away; lower the rate or the number of stages")
        return self.prunable + self.channels.followers()

    def make_masks(self) -> ChoiceMasks:
        return ChoiceMasks(self.layers, self.channels, [f"c{k}" for k in self._sparse])

    def make_patterns(self) -> dict[str, Pattern]:
        nets = {f"u{k}": Unstructured(self.ladder["u"][k]) for k in self._sparse} | {f"c{k}": ChannelShare(self.ladder["c"][k]) for k in self._sparse}
        self.born = {DENSE: 0} | {f"{kind}{k}": k for kind in "uc" for k in self._sparse} | dict(zip(self.nm, self.config.nm_stages))
        return {DENSE: Whole()} | nets | self.nm

    def make_timeline(self) -> Stages:
        c, turns = self.config, [self.turns(k) for k in self._sparse]
        c.settle_steps(len(turns[0]))
        lead = [steps for steps in (c.rewind_steps, c.dense_steps - c.rewind_steps) if steps]
        self._lead = len(lead) - 1                                  # the dense stage is cut at the snapshot
        return Stages((*((Phase(DENSE, steps, View(DENSE, DENSE)),) for steps in lead),
                       *(tuple(Phase(part, c.stage_steps, View(name, name)) for part, name in own) for own in turns)))

    def turns(self, k: int) -> list[tuple[str, str]]:
        """(part, sub-net) of the mini-batches of stage k, which repeat."""
        parts = [part for part in self.parts(k).items() if part[0] != DENSE]
        return [step for part in parts for step in ([(DENSE, DENSE)] * self.config.pivot + [part])]

    def parts(self, k: int) -> dict[str, str]:
        """The sub-net that stands for each pattern in stage k: {"dense": "dense", "u": "u4", "c": "c4", "nm": "1:2"}."""
        nm = [name for name in self.nm if self.born[name] <= k]
        return {DENSE: DENSE} | ({"u": f"u{k}", "c": f"c{k}"} if k else {}) | ({"nm": nm[-1] if nm else DENSE} if k and self.nm else {})

    def norms_of(self, name: str) -> str:
        return name if self.born[name] <= self.number(self.steps) else DENSE

    def compared(self) -> list[tuple[str, str]]:
        rungs = [(f"{kind}{k}", f"{kind}{k + 1}") for kind in "uc" for k in self._sparse[:-1]]
        return rungs + [(f"u{k}", f"c{k}") for k in self._sparse]

    # What a training loop asks.

    def number(self, step: int) -> int:
        """The stage of a step; 0 is the dense one."""
        return max(0, self.timeline.at(step).cycle - self._lead)

    def span(self, step: int) -> tuple[int, int]:
        """(first step, steps) of the stage, over which the learning rate's schedule runs."""
        k, c = self.number(step), self.config
        return (c.dense_steps + (k - 1) * c.stage_steps, c.stage_steps) if k else (0, c.dense_steps)

    def stage(self, step: int) -> str:
        return f"stage {self.number(step)}/{self.config.stages}"

    @property
    def extra_forward(self) -> str | None:
        """The mask of the teacher's forward pass in the step at hand."""
        c = self.config
        return ALL if c.pivot and c.distill and self.timeline.at(self.steps).phase.name != DENSE else None

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """criterion of the output and y; in sparse steps half of it, and half the cross entropy with the dense net's output on the same batch."""
        if self.extra_forward is None:
            return criterion(model(x), y)
        with self.subnet(DENSE), torch.no_grad():
            taught = model(x).float().softmax(1)
        torch.clear_autocast_cache()                                # it holds weights that were cast without a gradient
        output = model(x)
        return 0.5 * criterion(output, y) + 0.5 * F.cross_entropy(output.float(), taught)

    def use_directory(self, path: str | Path) -> None:
        """Keep the stages' weights in files there, so that a run can be resumed in another process. Call it before the first step."""
        if self.digests:
            raise ValueError(f"use_directory: {', '.join(self.digests)} lie in memory already; call it before the first step")
        self.store = StageStore(Path(path))

    # The end of a stage.

    def on_phase_end(self, moment: Moment) -> None:
        c, k = self.config, self.number(self.steps)
        ended = self.steps + 1
        over = ended >= c.dense_steps                               # and not just the snapshot's time
        found = self.masks_of(k + 1) if over and k < c.stages else {}           # which may refuse, with nothing changed
        if ended == c.rewind_steps and c.rewind:
            self._put("R", 0)
        if k:
            self._put(f"D{k}", k)
        snapshot = self.opened("R") if found and c.rewind else None             # which may refuse, too
        for name, (masks, counts) in found.items():
            self._record(k + 1, name, masks)
            self.masks.write(name, masks, counts)
        if found:
            self._restart(k + 1, snapshot)

    def masks_of(self, k: int) -> Found:
        """The masks that are new in stage k, from the weights as they are.

        Raises:
            ValueError: NaN in the weights, or a layer would keep none of them.
        """
        c, own, weights = self.config, len(self.prunable), [layer.param.detach() for layer in self.prunable]
        parent = f"u{k - 1}" if k > 1 else DENSE
        u, counts, nan = global_masks(weights, kept(self.masks.numel, self.ladder["u"][k]), min_per_layer=0, eligible=self.masks[parent][:own],
                                      largest_possible=self.masks.counts(parent)[:own], flags=self.nan_flags())
        self.refuse_nan(nan)
        if gone := [layer.name for layer, count in zip(self.prunable, counts) if count == 0]:
            raise ValueError(f"stage {k}: u{k} ({self.ladder['u'][k]:.4g} of the weights gone) would keep no weight of {', '.join(gone)}; lower the "
                             f"rate, or leave them dense with exclude")
        found: Found = {f"u{k}": (u, counts)}
        nm = None
        for name, pattern in self.nm.items():
            if self.born[name] == k:
                fits = [layer.name not in self.left_dense[name] for layer in self.prunable]
                nm = [ops.nm_mask(weight, pattern.keep, pattern.group, dim=1) if fit else torch.ones_like(weight, dtype=torch.bool)
                      for weight, fit in zip(weights, fits)]
                found[name] = nm, [pattern.nnz(weight.numel()) if fit else weight.numel() for weight, fit in zip(weights, fits)]
            elif self.born[name] < k:
                nm = self.masks[name][:own]
        if not c.umg:
            scores = self.channels.norm_scores(self.norm_scale)
        elif c.naive_refill:
            scores = self.channels.weight_scores(u, None, 1.0)
        else:
            scores = self.channels.weight_scores(u, [None] * own if nm is None else nm, c.beta)
        rows = self.channels.choose(scores, self.ladder["c"][k])
        every = list(zip(self.masks[DENSE], self.masks.numels))             # what a mask does not speak of is all there
        for masks, counts in found.values():
            masks += [mask for mask, _ in every[own:]]
            counts += [count for _, count in every[own:]]
        c_masks, c_counts = zip(*(rows.get(layer, whole) for layer, whole in zip(self.masks.layers, every)))
        return found | {f"c{k}": (list(c_masks), list(c_counts))}

    def norm_scale(self, norm: str) -> Tensor | None:
        module = self.model.get_submodule(norm)
        return self.norms.banks[0].get(f"{norm}.weight", module.weight)

    def _record(self, k: int, name: str, masks: list[Tensor]) -> None:
        before = self.masks[f"{name[0]}{k - 1}" if k > 1 and name not in self.nm else DENSE]
        kept_now, _, _, flips = ops.mask_stats(masks, before).T.tolist()
        sparsity = 1.0 - sum(kept_now[:len(self.prunable)]) / self.masks.numel
        self.history.append({"step": self.steps, "subnet": name, "event": k, "kind": str(self.patterns[name]), "sparsity": sparsity,
                             "fraction": sparsity, "flips": flips[:len(self.prunable)]})

    def _restart(self, k: int, snapshot) -> None:
        """Weights and norms for stage k: those of the snapshot, or without one as they are."""
        if snapshot is not None:
            for key, tensor in self.stored(0).items():
                tensor.copy_(snapshot[key])
            self.optimizer.state.clear()
        former = {} if snapshot is not None else self.parts(k - 1)
        for part, name in self.parts(k).items():
            self.copy_norms(former.get(part, DENSE), name)

    def own_norms(self, name: str) -> dict[str, Tensor]:
        """The norms of a sub-net's own bank, whatever it is shown with; none where all share one."""
        return self.norms.banks[self.subnets.index(name)] if len(self.norms.banks) > 1 else {}

    def copy_norms(self, source: str, target: str) -> None:
        for key, tensor in self.own_norms(target).items():
            tensor.copy_(self.own_norms(source)[key])

    # What a stage leaves, and the merge of all of them.

    def stored(self, k: int) -> dict[str, Tensor]:
        """All that stage k trained: "model/<name>", and "norm/<part>/<name>" for the norms that are each sub-net's own."""
        found = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items() if name not in self.norms.banks[0]}
        for part, name in self.parts(k).items():
            found |= {f"norm/{part}/{key}": tensor for key, tensor in self.own_norms(name).items()}
        return found

    def _put(self, name: str, k: int) -> None:
        self.digests[name] = self.store.put(name, {key: tensor.detach() for key, tensor in self.stored(k).items()}, {"step": self.steps + 1})

    def finalize(self, evaluate: Callable[[str], float], batches: Callable[[], Iterator[Tensor]],
                 tick: Callable[[int, int, str], None] | None = None) -> None:
        """Merge the stages into one set of weights, and measure every sub-net's norms under it: see `cocktail_merge.Merge`.

        Called again after an interruption it goes on behind the alphas that `state_dict` carried.

        Args:
            evaluate: accuracy of the named sub-net on held-out images.
            batches: training inputs on the model's device, the same ones at every call.
            tick: called with (done, total, what) as it goes on.
        Raises:
            ValueError: the run is not over, the sparsifier was removed, a stage's file is missing or changed, or there are no batches.
        """
        if self._attached is None:
            raise ValueError("finalize: this sparsifier was removed; call remove() after it")
        if self.steps < self.config.total_steps:
            raise ValueError(f"finalize: expected the run of {self.config.total_steps} steps to be over, it is at step {self.steps}")
        Merge(self, evaluate, batches, tick).run()

    def opened(self, name: str):
        """What this run stored under a name: "R" the snapshot, "D2" what stage 2 left."""
        return self.store.check(name, self.digests.get(name, "none"))

    def metrics(self) -> dict:
        """Adds "alphas", "stages" (first step and steps of each), and "training_flops_by_subnet": the multiples of each sub-net's forward FLOPs
        that a step costs in the mean over the run, with the teacher's forward passes ("honest") and, as the paper counts, without."""
        c = self.config
        steps = dict.fromkeys(self.subnets, 0) | {DENSE: c.dense_steps}
        taught = 0
        for turns in (self.turns(k) for k in self._sparse):
            for index, (part, name) in enumerate(turns):
                times = len(range(index, c.stage_steps, len(turns)))
                steps[name] += times
                taught += times * (part != DENSE and c.pivot and c.distill)
        paper = {name: 3 * count / c.total_steps for name, count in steps.items()}
        spans = [self.span(0), *(self.span(c.dense_steps + (k - 1) * c.stage_steps) for k in self._sparse)]
        return super().metrics() | {"alphas": list(self.alphas), "stages": [list(span) for span in spans], "training_flops_by_subnet": {
            "paper": paper, "honest": paper | {DENSE: paper[DENSE] + taught / c.total_steps}}}

    # The way to disk and back.

    def extra_state(self) -> dict:
        return {"alphas": list(self.alphas), "stages": dict(self.digests)}

    def load_extra_state(self, values: dict) -> None:
        alphas, stages = values["alphas"], values["stages"]
        if not isinstance(stages, dict) or not isinstance(alphas, list) or not all(alpha in POOL for alpha in alphas):
            raise ValueError(f"sparsifier state: extra: expected alphas of {list(POOL)} and digests of stages by name, got {alphas!r} and {stages!r}")
        for name, digest in stages.items():
            self.store.check(name, digest)
        self.alphas, self.digests = list(alphas), dict(stages)
