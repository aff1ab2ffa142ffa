"""A latency table beside the truth: what it predicts for 20 random slimmed nets against what they take, and their speed-up over the whole net.

Takes some minutes per model. The whole net runs beside every other one, so the second error is free of what the machine does meanwhile.
"""
import random
import statistics

import pytest
import torch

from sparsekern.deploy.latency_table import measure_latency_table
from sparsekern.deploy.timing import compare
from sparsekern.sparsity.channel_groups import find_channel_groups
from sparsekern.sparsity.latency import layer_widths
from sparsekern.sparsity.slim import slim
from sparsekern.support.models import build_model

SHAPE, BATCH, STEP, NETS, ROUNDS = (3, 32, 32), 128, 8, 20, 15


def random_nets(model):
    """Every group at a random number of bundles."""
    draw = random.Random(1)
    groups = [group for group in find_channel_groups(model, torch.rand(1, *SHAPE)) if not group.fixed]
    for _ in range(NETS):
        kept = {group.name: min(group.channels, STEP * draw.randint(1, -(-group.channels // STEP))) for group in groups}
        yield slim(model, groups, {group.name: torch.arange(group.channels) < kept[group.name] for group in groups}).eval()


@pytest.mark.parametrize("name, points", [("resnet20-b", 8), ("wrn-22-2", 5)])         # every width measured; and widths in between predicted
def test_predicted_against_measured(name, points, note, tmp_path):
    model, images = build_model(name).eval(), torch.rand(BATCH, *SHAPE)
    table = measure_latency_table(model, SHAPE, BATCH, tmp_path / "table.json", step=STEP, points=points, progress="plain")
    nets = {str(number): net for number, net in enumerate(random_nets(model))}
    rows = []
    for number, timing in compare(nets, model, images, ROUNDS).items():
        predicted = table.total_ms(layer_widths(nets[number]))
        rows.append((predicted, timing.ms, predicted / timing.ms - 1, predicted / table.full_ms / timing.ratio - 1))
    lines = [f"whole net {table.full_ms:.2f} ms, smallest {table.smallest_ms:.2f} ms; {table.measured['rounds']} rounds of "
             f"{table.measured['nets']} nets, known to {table.measured['spread']:.1%}",
             "predicted ms, measured ms, error, error of the share of the whole net's latency:"]
    lines += [f"{predicted:8.2f} {ms:8.2f} {error:+7.1%} {ratio:+7.1%}" for predicted, ms, error, ratio in rows]
    for place, words in ((2, "latency"), (3, "share of the whole net's latency")):
        errors = [abs(row[place]) for row in rows]
        for value, bound, which in ((statistics.median(errors), 0.05, "median"), (max(errors), 0.10, "largest")):
            lines.append(f"{'met' if value <= bound else 'MISSED'}: {which} error of the {words} at most {bound:.0%}: {value:.1%}")
    note("latency_table", f"{name}, batch {BATCH}, {torch.get_num_threads()} threads, {NETS} random slimmed nets", lines)
    assert table.smallest_ms < table.full_ms
