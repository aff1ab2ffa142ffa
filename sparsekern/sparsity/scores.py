"""Scores that rank weights: per layer one tensor whose larger magnitude stays or comes first.

Scores may carry a sign: the selection ops rank magnitudes, so |W| is never materialised.
"""
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsekern.sparsity.counter_rng import uniform


@dataclass
class Sources:
    """What scores are made from, one entry per layer; `seed` and `step` key the random ones."""
    weights: list[Tensor]
    grads: list[Tensor] | None = None
    momenta: list[Tensor] | None = None
    seed: int = 0
    step: int = 0


def magnitude(s: Sources) -> list[Tensor]:
    return s.weights


def gradient(s: Sources) -> list[Tensor]:
    return _needed(s.grads, "gradient")


def momentum(s: Sources) -> list[Tensor]:
    return _needed(s.momenta, "momentum")


def saliency(s: Sources) -> list[Tensor]:
    """W g, the first-order change of the loss when a weight is removed."""
    return torch._foreach_mul(s.weights, _needed(s.grads, "saliency"))


def mag_grad(s: Sources, share: float = 0.01) -> list[Tensor]:
    """|W| + share |g|."""
    return torch._foreach_add(torch._foreach_abs(s.weights), torch._foreach_abs(_needed(s.grads, "mag_grad")), alpha=share)


def random(s: Sources) -> list[Tensor]:
    """Uniform in [0, 1), from (seed, step, layer, position) alone: the same on every device and after a resume."""
    return [uniform(w, s.seed, s.step, layer) for layer, w in enumerate(s.weights)]


def _needed(tensors: list[Tensor] | None, name: str) -> list[Tensor]:
    if tensors is None:
        raise ValueError(f"score {name!r}: expected gradients (or momenta) to be given")
    return tensors


SCORES = {f.__name__: f for f in (magnitude, gradient, momentum, saliency, mag_grad, random)}


def score(name: str, sources: Sources) -> list[Tensor]:
    """The scores called `name`, one tensor per layer."""
    if name not in SCORES:
        raise ValueError(f"score: expected one of {sorted(SCORES)}, got {name!r}")
    return SCORES[name](sources)
