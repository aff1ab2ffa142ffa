"""AST-GC with n:m groups: the ramp in whole groups, the exchange of groups by hand, exactness at the end, and what is refused."""
import copy
import json
import math
import warnings
from fractions import Fraction

import pytest
import torch
from ast_gc_runs import backward, make, one_thread, train  # noqa: F401
from torch import nn

import sparsekern
from sparsekern import algorithms, ops
from sparsekern.cli import main
from sparsekern.sparsity import NM
from sparsekern.sparsity.nm_groups import group_scores
from sparsekern.testing import small_convnet, toy_batch

PATTERNS = ("2:4", "1:4", "1:8", "1:16")


def even_net():
    """All but the first convolution have whole groups of 16; the last layer's inputs do, too."""
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, bias=False),
                         nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
                         nn.Flatten(), nn.Linear(64, 4))


def nm(net=None, total_steps=80, nm=PATTERNS, delta_t=8, prune_end=48, **fields):
    return make(net=net or even_net(), total_steps=total_steps, sparsity=algorithms.AST_GC.Config.sparsity, pattern="nm", nm=nm,
                delta_t=delta_t, prune_end=prune_end, **fields)


def groups_kept(mask, m):
    """How many weights every group keeps."""
    return group_scores(mask.float(), m).long()


# One event, by hand.

W = [[3.0, 1.0, 2.0, 2.0, 0.5, 0.1, 1.0, -4.0], [0.0, 1.0, -1.0, 1.0, 5.0, 0.0, 0.3, 0.2]]
X = [0.0, 0.0, 3.0, -3.0, 1.0, 0.0, 0.0, 0.0]


def linear(fraction, step_factors=(1.0, 2.0)):
    """One layer of 8 groups of 2 at the first of 4 gradual events: (3/4)^3 of the groups, 4 when rounded up, stay dense."""
    net = nn.Sequential(nn.Linear(8, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor(W))
    sparsifier = sparsekern.AST_GC(net, torch.optim.SGD(net.parameters(), lr=0.0), pattern="nm", nm="1:2", total_steps=8, delta_t=1,
                                   prune_end=4, offset=0, prune_fraction=fraction, prune_fraction_end=fraction)
    for _ in range(2):
        (net(torch.tensor([X])) * torch.tensor(step_factors)).sum().backward()
        sparsifier.step()
    return sparsifier


def test_the_groups_of_largest_sum_stay_dense():
    # sums of magnitudes: 4, 4, 0.6, 5 and 1, 2, 5, 0.5; elsewhere the larger one is kept, the first of equal ones
    sparsifier = linear(0.0)
    mask, = sparsifier.masks["1:2"]
    assert mask.int().tolist() == [[1, 1, 1, 1, 1, 0, 1, 1], [0, 1, 1, 0, 1, 1, 1, 0]]
    assert sparsifier.masks.counts("1:2") == [12]


def test_dense_groups_are_exchanged_for_those_of_largest_gradient():
    # floor(0.5 * 4) = 2 go: sums 4 and 4. Of the sparse groups now, 2 come: gradients sum to 0, 6, 1 in row 0 and 0, 12, -, 0 in row 1,
    # where the one of 6 had just gone
    sparsifier = linear(0.5)
    mask, = sparsifier.masks["1:2"]
    assert mask.int().tolist() == [[1, 0, 1, 1, 1, 0, 1, 1], [0, 1, 1, 1, 1, 1, 1, 0]]
    assert sparsifier.masks.counts("1:2") == [12] and sparsifier.history[0]["flips"].tolist() == [4]


def test_a_share_of_less_than_one_group_exchanges_none():
    assert torch.equal(linear(0.24).masks["1:2"][0], linear(0.0).masks["1:2"][0])


def test_equal_groups_stay_by_the_lowest_index():
    net = nn.Sequential(nn.Linear(8, 2, bias=False))
    nn.init.ones_(net[0].weight)
    sparsifier = sparsekern.AST_GC(net, torch.optim.SGD(net.parameters(), lr=0.0), pattern="nm", nm="1:2", total_steps=8, delta_t=1,
                                   prune_end=4, offset=0, prune_fraction=0.0)
    for _ in range(2):
        net(torch.ones(1, 8)).sum().backward()
        sparsifier.step()
    assert sparsifier.masks["1:2"][0].int().tolist() == [[1] * 8, [1, 0] * 4]


# The ramp.

@pytest.mark.parametrize("total, delta_t, offset, start, end", [(80, 8, 0, 0, 48), (80, 7, 1, 0, 40), (90, 5, 2, 11, 42), (60, 9, 0, 0, 9)])
def test_at_every_event_the_share_of_groups_is_exact(total, delta_t, offset, start, end):
    net, _, sparsifier = nm(total_steps=total, delta_t=delta_t, offset=offset, prune_start=start, prune_end=end)
    first, last = start // delta_t, end // delta_t
    seen = {name: [] for name in PATTERNS}
    for step in range(total):
        before = {name: [mask.clone() for mask in sparsifier.masks[name]] for name in PATTERNS}
        events = len(sparsifier.history)
        active = sparsifier.active
        assert active == PATTERNS[step % 4]
        train(net, sparsifier, [step])
        changed = {name for name in PATTERNS if any((a != b).any() for a, b in zip(before[name], sparsifier.masks[name]))}
        assert changed <= {active}
        if len(sparsifier.history) == events:
            assert not changed                                      # a group that was regrown stays so until the next event
            continue
        record, pattern = sparsifier.history[-1], NM.parse(active)
        assert record["subnet"] == active and record["step"] == step
        seen[active].append(record["event"])
        left = Fraction(last - record["event"], max(1, last - first)) ** 3
        for mask, count in zip(sparsifier.masks[active], sparsifier.masks.counts(active)):
            kept = groups_kept(mask, pattern.group)
            assert int((kept == pattern.group).sum()) == math.ceil(left * kept.numel())
            assert ((kept == pattern.group) | (kept == pattern.keep)).all() and int(mask.sum()) == count
    assert all(found[-1] == last and found == sorted(set(found)) for found in seen.values())
    if total == 80:
        assert all(len(found) == last for found in seen.values())


def test_an_event_follows_the_procedure_on_a_real_net():
    net, _, sparsifier = nm(nm="2:4", delta_t=4, prune_end=24, total_steps=40)
    train(net, sparsifier, range(8))
    weights = [w.detach().clone() for w in sparsifier.weights]
    backward(net, 8)
    grads = [w.grad.clone() for w in sparsifier.weights]
    assert all((g[~m] != 0).any() for g, m in zip(grads, sparsifier.masks["2:4"]))          # dense: what is hidden has a gradient, too
    sparsifier.step()
    assert sparsifier.history[-1]["event"] == 2
    share = 0.005 + 0.495 / 2 * (1 + math.cos(math.pi * 8 / 40))
    exchanged = 0
    for w, g, mask in zip(weights, grads, sparsifier.masks["2:4"]):
        size, slope = group_scores(w, 4).flatten(), group_scores(g, 4).flatten()
        count = math.ceil(Fraction(4, 6) ** 3 * size.numel())
        dense = size.argsort(descending=True, stable=True)[:count]
        q = math.floor(share * count)
        staying = torch.zeros(size.numel(), dtype=torch.bool)
        staying[dense[:count - q]] = True
        staying[slope.masked_fill(staying, -1).argsort(descending=True, stable=True)[:q]] = True
        assert torch.equal(groups_kept(mask, 4).flatten() == 4, staying)
        exchanged += q
        order = w.abs().movedim(1, -1).unflatten(-1, (-1, 4)).argsort(dim=-1, descending=True, stable=True)
        largest = torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order[..., :2], True).flatten(-2).movedim(-1, 1)
        assert torch.equal(mask & largest, largest)
    assert exchanged > 0


@pytest.mark.parametrize("patterns", [PATTERNS, ("zeros 2:4", "zeros 3:4", "zeros 7:8", "zeros 15:16"), "3:8,1:2"])
def test_in_the_end_every_group_of_every_layer_keeps_exactly_n(patterns):
    net, _, sparsifier = nm(nm=patterns)
    train(net, sparsifier, range(80))
    assert sparsifier.subnets == tuple(str(pattern) for pattern in NM.parse_all(patterns)) and len(sparsifier.layers) == 3
    for row in sparsifier.summary():
        pattern = NM.parse(row["name"])
        assert all((groups_kept(mask, pattern.group) == pattern.keep).all() for mask in sparsifier.masks[row["name"]])
        assert row["pattern"] == row["name"] and row["left_dense"] == {}
        assert row["sparsity"] == row["target_sparsity"] == pattern.sparsity and row["nnz"] == pattern.nnz(sparsifier.masks.numel)
    assert {(w.detach() != 0).all().item() for w in sparsifier.weights} == {True}           # hidden weights keep their values
    name = sparsifier.subnets[-1]
    sparsifier.remove(name)
    pattern = NM.parse(name)
    for weight in sparsifier.weights:                               # zeros are where the packed form wants them
        matrix = weight.detach().movedim(1, -1).flatten(0, -2)
        values, _ = ops.nm_pack(matrix, pattern.keep, pattern.group)
        assert values.numel() == pattern.nnz(weight.numel()) and (values != 0).all()


def test_the_sparsities_of_the_paper():
    _, _, sparsifier = nm()
    assert sparsifier.config.sparsity == [0.5, 0.75, 0.875, 0.9375] and sparsifier.config.nm == list(PATTERNS)
    assert algorithms.AST_GC.Config(total_steps=1).nm == ",".join(PATTERNS)


def test_after_the_ramp_masks_stay():
    net, _, sparsifier = nm(delta_t=4, prune_end=16)
    train(net, sparsifier, range(40))
    before, events = sparsifier.masks.packed(), len(sparsifier.history)
    assert events == 16 and not any(sparsifier.event_due(step) for step in range(40, 80))
    train(net, sparsifier, range(40, 80))
    assert len(sparsifier.history) == events
    assert all(torch.equal(value, before[key]) for key, value in sparsifier.masks.packed().items())


# What has no groups.

def test_layers_without_groups_stay_dense_and_are_named():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10), nn.ReLU(), nn.Linear(10, 4))
    with pytest.warns(UserWarning, match=r"left dense: 4.weight by 2:4 \(a depthwise convolution"):
        net, _, sparsifier = nm(net, nm="2:4,1:16")
    assert sparsifier.masks.layers == ("2.weight", "8.weight")              # the others are dense in every sub-net
    train(net, sparsifier, range(80))
    two, one = sparsifier.summary()
    assert list(two["left_dense"]) == ["4.weight", "10.weight"] and two["sparsity"] == 0.5
    assert list(one["left_dense"]) == ["2.weight", "4.weight", "10.weight"]
    assert one["left_dense"]["2.weight"] == "its 8 inputs do not divide into groups of 16"
    assert one["layers"]["2.weight"]["sparsity"] == 0 and one["layers"]["8.weight"]["sparsity"] == 0.9375
    assert sparsifier.masks["1:16"][0].all() and one["nnz"] == sparsifier.masks.numels[0] + 10
    assert one["sparsity"] == 1 - one["nnz"] / sparsifier.masks.numel < one["target_sparsity"]


def test_a_frozen_layer_exchanges_nothing():
    net, _, sparsifier = nm(nm="2:4", delta_t=4, prune_end=24, total_steps=40)
    net[6].weight.requires_grad_(False)
    train(net, sparsifier, range(40))
    assert all((groups_kept(mask, 4) == 2).all() for mask in sparsifier.masks["2:4"])


# The rest of the algorithm, with groups.

@pytest.mark.parametrize("hooked", [False, True])
def test_the_applied_gradient_never_conflicts_and_the_projection_fires(hooked):
    net, opt, sparsifier = nm(optimizer="plain", dtype=torch.float64, lr=0.1)
    if hooked:
        sparsifier.hook()
    previous, fired = None, 0
    for step in range(60):
        active = sparsifier.active
        backward(net, step)
        raw, weights = [w.grad.clone() for w in sparsifier.weights], [w.detach().clone() for w in sparsifier.weights]
        opt.step() if hooked else sparsifier.step()
        opt.zero_grad()
        masks = sparsifier.masks[active]
        raw = [g * m for g, m in zip(raw, masks)]
        applied = [(b - w) / 0.1 for b, w in zip(weights, sparsifier.weights)]
        assert all((a[~m] == 0).all() for a, m in zip(applied, masks))
        if previous is not None and step % 4:
            for p, g, a, m in zip(previous, raw, applied, masks):
                fired += int(((p * m) * g).sum() < 0)
                assert ((p * m) * a).sum() >= -1e-9 * (p * m).norm() * g.norm() - 1e-12
        previous = raw
    rates = sparsifier.metrics()["projection"]
    assert fired > 0 and rates["steps"] == 45 and rates["fire_rate"] == pytest.approx(fired / (45 * 3))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("stop", [9, 10, 33, 60])
def test_a_resumed_run_is_bit_for_bit_the_unbroken_one(optimizer, stop):
    net, opt, sparsifier = nm(optimizer=optimizer)
    train(net, sparsifier, range(stop))
    saved = copy.deepcopy((net.state_dict(), opt.state_dict())), json.loads(json.dumps(sparsifier.state_dict()["meta"]))
    tensors = copy.deepcopy(sparsifier.state_dict()["tensors"])
    losses = train(net, sparsifier, range(stop, 70))
    other, other_opt, again = nm(optimizer=optimizer)
    train(other, again, range(2))
    other.load_state_dict(saved[0][0])
    other_opt.load_state_dict(saved[0][1])
    again.load_state_dict({"tensors": tensors, "meta": saved[1]})
    assert train(other, again, range(stop, 70)) == losses
    a, b = sparsifier.state_dict(), again.state_dict()
    assert a["meta"] == b["meta"] and a["tensors"].keys() == b["tensors"].keys()
    assert all(torch.equal(value.nan_to_num(-1), b["tensors"][key].nan_to_num(-1)) for key, value in a["tensors"].items())
    assert all(torch.equal(x, y) for x, y in zip(net.state_dict().values(), other.state_dict().values()))


def test_another_pattern_is_not_resumed():
    _, _, two = nm(nm="2:4,1:4")
    _, _, one = nm(nm="2:4,1:8")
    with pytest.raises(ValueError, match="subnets"):
        one.load_state_dict(two.state_dict())


def test_channels_last_weights_come_to_the_same_masks():
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(1)
        net, _, sparsifier = nm(even_net().to(memory_format=layout), dtype=torch.float64)
        train(net, sparsifier, range(20))
        results.append(sparsifier.masks.packed())
    assert all(torch.equal(value, results[1][key]) for key, value in results[0].items())


def test_magnitude_is_the_same_for_one_sub_net():
    torch.manual_seed(1)
    net = even_net()
    sparsifier = algorithms.build("magnitude", net, torch.optim.SGD(net.parameters(), lr=0.05), pattern="nm", total_steps=40)
    train(net, sparsifier, range(40))
    assert sparsifier.subnets == ("2:4",) and sparsifier.summary()[0]["sparsity"] == 0.5
    assert all((groups_kept(mask, 4) == 2).all() for mask in sparsifier.masks["2:4"])


def test_a_toy_problem_is_learned_by_every_sub_net():
    net, _, sparsifier = nm(total_steps=160, prune_end=100)
    train(net, sparsifier, range(160))
    net.eval()
    x, y = toy_batch(10_000, size=256)
    for name in sparsifier.subnets:
        with sparsifier.subnet(name) as model, torch.no_grad():
            assert (model(x).argmax(1) == y).float().mean() > 0.9, name


# From the command line.

def test_digits_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sparsekern.training.report.render", lambda report: "page")
    out = tmp_path / "run"
    command = ["train", "ast-gc", "--pattern", "nm", "--nm", "2:4,1:4,zeros 15:16", "--model", "mlp:128,64", "--batch-size", "32",
               "--epochs", "8", "--threads", "1", "--device", "cpu", "--progress", "none", "--out", str(out)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "1:16     1:16     93.7500%  93.7500%" in said and "dense:" not in said
    report = json.loads((out / "report.json").read_text())
    assert [row["pattern"] for row in report["subnets"]] == ["2:4", "1:4", "1:16"]
    assert [row["sparsity"] for row in report["subnets"]] == [0.5, 0.75, 0.9375]
    assert all(row["accuracy"] > least for row, least in zip(report["subnets"], (0.8, 0.7, 0.3)))
    again = tmp_path / "again"
    assert main(["train", "ast-gc", "--config", str(out / "config.yaml"), "--out", str(again)]) == 0
    assert json.loads((again / "report.json").read_text())["subnets"] == report["subnets"]


def test_patterns_in_yaml_want_quotes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sparsekern.training.report.render", lambda report: "page")
    path = tmp_path / "c.yaml"
    command = ["train", "magnitude", "--config", str(path), "--model", "mlp:8", "--subset", "64", "--batch-size", "8", "--epochs", "2",
               "--threads", "1", "--device", "cpu", "--progress", "none", "--overwrite", "--out", str(tmp_path / "run")]
    path.write_text("pattern: nm\nnm: 2:4")
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "such as '2:4', got 124; YAML reads an unquoted 2:4 as a number" in said and said.count("\n") == 1
    for text in ("nm: '1:8'", "nm: ['1:8']"):
        path.write_text(f"pattern: nm\n{text}")
        assert main(command) == 0
        assert "1:8      1:8      87.5000%  87.5000%" in capsys.readouterr().out


def test_layers_left_dense_are_in_the_report(tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["train", "ast-gc", "--pattern", "nm", "--nm", "2:4,1:16", "--model", "mlp:20,32", "--subset", "128", "--batch-size", "16",
                     "--epochs", "4", "--threads", "1", "--device", "cpu", "--progress", "none", "--out", str(tmp_path / "run")]) == 0
    words = "its 20 inputs do not divide into groups of 16"
    assert words in capsys.readouterr().out and words in (tmp_path / "run/report.html").read_text()


# Misuse.

@pytest.mark.parametrize("fields, message", [
    ({"nm": "4:2"}, "n is the number kept"), ({"nm": "2:4,3:4:8"}, "expected n:m for n kept of m"),
    ({"nm": "2:4,zeros 2:4"}, "nm: expected one or more different patterns, got '2:4,zeros 2:4'"), ({"nm": []}, "one or more different"),
    ({"nm": "1:64"}, "1:64 fits no layer: 3.weight: its 8 inputs do not divide into groups of 64"),
    ({"sparsity": [0.9]}, r"sparsity: belongs to pattern='unstructured', got \[0.9\] with pattern='nm'"),
    ({"initial_sparsity": 0.5}, "initial_sparsity: belongs to"),
    ({"nested": True}, "nested: belongs to pattern='unstructured'"), ({"drop_over_all": True}, "drop_over_all: belongs to"),
    ({"min_per_layer": 2}, "min_per_layer: belongs to"),
    ({"pattern": "n:m"}, "pattern: expected 'unstructured' or 'nm', got 'n:m'"),
    ({"pattern": "unstructured", "nm": "1:2"}, "nm: belongs to pattern='nm', got '1:2'"),
    ({"prune_end": 0}, "no mask event falls between"), ({"only": "nothing"}, "nothing to prune"),
])
def test_configurations_that_cannot_work_are_refused(fields, message):
    net = small_convnet()
    net.pop(-1)                                                     # the one layer with many inputs
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=message):
        sparsekern.AST_GC(net, optimizer, **({"pattern": "nm", "nm": "2:4", "total_steps": 100} | fields))
    assert not any("forward" in vars(module) for module in net.modules())


def test_a_number_in_the_place_of_a_pattern_is_refused():
    with pytest.raises(TypeError, match="such as '2:4', got 124"):
        nm(nm=124)


def test_nan_at_an_event_names_the_layer_and_leaves_the_masks():
    net, _, sparsifier = nm()
    train(net, sparsifier, range(8))
    backward(net, 8)
    with torch.no_grad():
        net[6].weight[1, 2] = math.nan
    before = sparsifier.masks.packed()
    with pytest.raises(ValueError, match="step 8: NaN in the weights of 6.weight"):
        sparsifier.step()
    assert all(torch.equal(value, before[key]) for key, value in sparsifier.masks.packed().items())
    assert sparsifier.history == [] and sparsifier.steps == 8
