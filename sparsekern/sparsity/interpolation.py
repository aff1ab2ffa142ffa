"""Greedy interpolation of the weights that the stages of a run ended with into one set (Sparse Cocktail, section 3.6 and Algorithm 1)."""
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

POOL = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)


class Reader(Protocol):
    def __getitem__(self, name: str) -> Tensor: ...


@torch.no_grad()
def interpolate(targets: Mapping[str, Tensor], load: Callable[[int], Reader], stages: int, score: Callable[[int], float],
                pool: Sequence[float] = POOL, known: Sequence[float] = (), note: Callable[[int, list[float]], None] | None = None) -> list[float]:
    """D = D_1; then for k = 2 to `stages`: D = alpha_k D + (1 - alpha_k) D_k, with the alpha_k of the pool that scores best.

    Memory: the targets, one copy of them on their device, and one tensor of a stage at a time, read anew for each candidate. The same bits
    whatever the number of threads, and whether or not the call was interrupted.

    Args:
        targets: what is merged, by name, written in place: weights and the norms' affine parameters. Integer tensors are left as they are.
        load: the stage of a number from 1, for example `StageStore.open`; called once a stage at most.
        stages: their number.
        score: called with k while the targets are a candidate, after every stage's candidate of every alpha; the larger, the better. The
            paper's is the sum of the hold-out accuracies of all sub-nets of the stages 1 to k.
        pool: the candidates of alpha_k, in [0, 1]. Of equal scores the first wins: with POOL the one that takes the most of D_k, as only a
            D_k that lowers the accuracy is to be dropped, which is what alpha = 1 does.
        known: alpha_2, alpha_3, ... chosen by a call that was interrupted; they are applied and not scored again.
        note: called with k and the scores in the order of the pool once stage k is done; `choose(pool, scores)` is the alpha_k.
    Returns:
        alpha_2 to alpha_S. The targets hold D.
    Raises:
        ValueError: an argument that does not fit; nothing has changed then. A stage that does not fit the targets, or a score that is NaN:
            the targets hold D of the stages before. So they do when `load`, `score` or `note` raises.
    """
    targets = {name: target for name, target in targets.items() if target.is_floating_point()}
    _check(targets, stages, pool, known)
    merged = {name: torch.empty_like(target) for name, target in targets.items()}
    mix(merged, merged, _Fitting(load(1), 1, targets), 0.0)
    alphas: list[float] = []
    try:
        for k in range(2, stages + 1):
            alpha, scores = (float(known[k - 2]), None) if len(alphas) < len(known) else (None, [])
            stage = _Fitting(load(k), k, targets) if alpha != 1 else merged
            if scores is not None:
                for candidate in pool:
                    mix(targets, merged, stage, candidate)
                    scores.append(_number(score(k), k, candidate))
                alpha = choose(pool, scores)
            mix(targets, merged, stage, alpha)
            mix(merged, targets, targets, 1.0)
            alphas.append(alpha)
            if scores is not None and note is not None:
                note(k, scores)
    finally:
        mix(targets, merged, merged, 1.0)
    return alphas


def choose(pool: Sequence[float], scores: Sequence[float]) -> float:
    """The alpha of the highest score; of equal ones the first."""
    return float(pool[max(range(len(pool)), key=scores.__getitem__)])


def barrier(pool: Sequence[float], scores: Sequence[float]) -> float:
    """How far the scores sag, at most, below the straight line between those of the smallest and the largest alpha (section J and Fig. 7).

    In the unit of the scores: of sums of accuracies, divide by the number of sub-nets. 0 where D and D_k lie in one basin.
    """
    (low, first), (high, last) = min(zip(pool, scores)), max(zip(pool, scores))
    slope = (last - first) / (high - low) if high > low else 0.0
    return max(0.0, *(first + slope * (alpha - low) - score for alpha, score in zip(pool, scores)))


@torch.no_grad()
def mix(out: Mapping[str, Tensor], a: Mapping[str, Tensor], b: Reader, alpha: float) -> None:
    """out = alpha a + (1 - alpha) b, tensor by tensor without a temporary; exactly a at alpha = 1 and b at 0. `out` may be `a` or `b`."""
    for name, target in out.items():
        if alpha in (0, 1):
            target.copy_(a[name] if alpha else b[name])             # not 0 * infinity
        else:
            torch.lerp(a[name], b[name].to(target.device), 1 - alpha, out=target)


class _Fitting:
    """A stage whose tensors are refused unless they are like the targets."""

    def __init__(self, reader: Reader, k: int, targets: Mapping[str, Tensor]):
        self.reader, self.k, self.targets = reader, k, targets

    def __getitem__(self, name: str) -> Tensor:
        value, target = self.reader[name], self.targets[name]
        if value.shape != target.shape or value.dtype != target.dtype:
            raise ValueError(f"interpolate: stage {self.k}: {name}: expected {target.dtype} {list(target.shape)}, got {value.dtype} "
                             f"{list(value.shape)}; it is a stage of another model")
        return value


def _number(score: float, k: int, alpha: float) -> float:
    if math.isnan(score):
        raise ValueError(f"interpolate: stage {k}, alpha {alpha}: the score is NaN; expected a number such as a sum of accuracies: look for NaN in "
                         f"the weights of stage {k} and in the hold-out images")
    return float(score)


def _check(targets: Mapping[str, Tensor], stages: int, pool: Sequence[float], known: Sequence[float]) -> None:
    if not targets:
        raise ValueError("interpolate: targets: expected at least one floating-point tensor, got none")
    if stages < 1:
        raise ValueError(f"interpolate: stages: expected at least 1, got {stages}")
    if not len(pool) or not all(0 <= alpha <= 1 for alpha in pool):
        raise ValueError(f"interpolate: pool: expected numbers from 0 to 1, got {list(pool)}")
    if len(known) > stages - 1 or not set(known) <= set(pool):
        raise ValueError(f"interpolate: known: expected at most {stages - 1} of the pool's numbers {list(pool)}, got {list(known)}")
