"""Scores that rank weights: per layer one tensor whose larger magnitude stays or comes first.

Scores may carry a sign: the selection ops rank magnitudes, so |W| is never materialised.
"""
from dataclasses import dataclass

import torch
from torch import Tensor


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
    return [_uniform(w, (s.seed, s.step, layer)) for layer, w in enumerate(s.weights)]


def _needed(tensors: list[Tensor] | None, name: str) -> list[Tensor]:
    if tensors is None:
        raise ValueError(f"score {name!r}: expected gradients (or momenta) to be given")
    return tensors


_WORD = 0xFFFFFFFF


def _mix(x):
    """Murmur3's finaliser on 32-bit words held in int64 (a product may wrap: its low 32 bits are right)."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _WORD
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _WORD
    return x ^ (x >> 16)


def _uniform(like: Tensor, keys: tuple[int, ...]) -> Tensor:
    place = torch.arange(like.numel(), device=like.device)
    word = _mix((place & _WORD) ^ _mix(place >> 32))
    for key in keys:
        word = _mix(word ^ _mix((key + 0x9E3779B9) & _WORD))
    return (word >> 8).to(torch.float32).div_(1 << 24).view(like.shape)


SCORES = {f.__name__: f for f in (magnitude, gradient, momentum, saliency, mag_grad, random)}


def score(name: str, sources: Sources) -> list[Tensor]:
    """The scores called `name`, one tensor per layer."""
    if name not in SCORES:
        raise ValueError(f"score: expected one of {sorted(SCORES)}, got {name!r}")
    return SCORES[name](sources)
