"""The time of an event over a layer's width, at a fixed number of connections per unit: GSE's grows linearly, RigL's as the square.

Both are timed inside `step()` of a layer width x width with 16 connections per unit and a batch of 32; GSE's event includes the
sampling in the backward pass (activities, candidates, their gradients), RigL's the dense gradient.
"""
import time

import numpy
import pytest
import torch
from torch import nn

import sparsekern

PER_UNIT, BATCH = 16, 32
GSE_WIDTHS = [1024, 2048, 4096, 8192, 16384, 32768]
RIGL_WIDTHS = [1024, 2048, 4096, 8192]                     # 8192: 256 MiB each of weight, gradient and momentum


class Event:
    """Called: the seconds that a step with an event takes more than one without, medians of a few, forward and backward included."""

    def __init__(self, algorithm: str, width: int, rounds: int, **fields):
        sparsity = 1 - PER_UNIT / width
        layer = (nn.Linear(width, width, bias=False) if algorithm == "rigl"
                 else sparsekern.nn.SparseLinear.from_shape(width, width, sparsity=sparsity, bias=False))
        self.model, self.x, self.rounds = nn.Sequential(layer), torch.randn(BATCH, width), rounds
        self.sparsifier = sparsekern.algorithms.build(algorithm, self.model, torch.optim.SGD(layer.parameters(), lr=1e-3, momentum=0.9),
                                                      sparsity=sparsity, total_steps=10**6, delta_t=2, end=10**6, **fields)

    def __call__(self) -> float:
        times = ([], [])
        for step in range(2 * self.rounds):
            started = time.perf_counter()
            self.model(self.x).square().mean().backward()
            self.sparsifier.step()
            times[step % 2].append(time.perf_counter() - started)
        return max(1e-9, float(numpy.median(times[1]) - numpy.median(times[0])))


def exponent(widths: list[int], seconds: list[float]) -> float:
    """Of the power law through the points, by least squares in logarithms."""
    return float(numpy.polyfit(numpy.log(widths), numpy.log(seconds), 1)[0])


@pytest.mark.parametrize("distribution", ["uniform", "grabo", "graest"])
def bench_gse_event(race, distribution):
    contenders = {f"sparsekern GSE {width}": Event("gse", width, 3, distribution=distribution) for width in GSE_WIDTHS}
    contenders |= {f"RigL {width}": Event("rigl", width, 1) for width in (RIGL_WIDTHS if distribution == "uniform" else ())}

    def notes(medians):
        own = exponent(GSE_WIDTHS, [medians[f"sparsekern GSE {width}"] for width in GSE_WIDTHS])
        lines = [f"{'met' if own <= 1.1 else 'MISSED'}: GSE's event grows as width^{own:.2f} over {GSE_WIDTHS[0]} to {GSE_WIDTHS[-1]} "
                 f"(at most 1.1 asked for)"]
        if distribution == "uniform":
            dense = exponent(RIGL_WIDTHS, [medians[f"RigL {width}"] for width in RIGL_WIDTHS])
            at = RIGL_WIDTHS[-1]
            lines.append(f"RigL's as width^{dense:.2f}; at {at} it takes {medians[f'RigL {at}'] / medians[f'sparsekern GSE {at}']:.0f}x the time "
                         f"of GSE's")
        return lines

    race("GSE event", f"{PER_UNIT} connections per unit, batch {BATCH}, {distribution}", contenders, notes=notes, rounds=5, budget_s=60)
