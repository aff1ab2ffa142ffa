"""IEE with n:m groups: two cycles by hand, exactly n of m after every growth, and only what is inactive moves while it is explored."""
import copy
import json
import math

import pytest
import torch
from ast_gc_runs import backward, one_thread, train  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsekern import IEE, algorithms, ops
from sparsekern.cli import main
from sparsekern.sparsity import NM
from sparsekern.sparsity.nm_groups import group_scores, group_values
from sparsekern.testing import small_convnet, toy_batch

OPTIMIZERS = {"sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3, nesterov=True),
              "adam": lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=1e-3)}


def make(net=None, optimizer="sgd", total_steps=60, nm="2:4", h_steps=3, j_steps=2, q_steps=3, **fields):
    """The small net; all but its first layer, which is skipped, have groups of 2, 4 and 8."""
    torch.manual_seed(1)
    net = net or small_convnet()
    optimizer = OPTIMIZERS[optimizer](net.parameters())
    return net, optimizer, IEE(net, optimizer, **{"skip_first": True} | fields, pattern="nm", nm=nm, total_steps=total_steps, h_steps=h_steps,
                               j_steps=j_steps, q_steps=q_steps)


def groups_kept(mask, m):
    return group_scores(mask.float(), m).long()


def exact(sparsifier, pattern):
    return all((groups_kept(mask, pattern.group) == pattern.keep).all() for mask in sparsifier.masks[sparsifier.net])


# By hand.

def test_two_cycles_by_hand():
    net = nn.Sequential(nn.Linear(8, 2, bias=False))
    weight = net[0].weight
    with torch.no_grad():
        weight.copy_(torch.tensor([[4.0, -3.0, 1.0, 2.0, 0.5, 0.5, -0.5, 0.1], [9.0, 1.0, 8.0, -7.0, 0.0, 6.0, 0.0, 5.0]]))
    sparsifier = IEE(net, torch.optim.SGD(net.parameters(), lr=0.0), pattern="nm", nm="2:4", total_steps=8, end=6, h_steps=1, j_steps=1,
                     q_steps=1, update_budget=0.5)

    def step():
        net(torch.ones(1, 8)).sum().backward()
        sparsifier.step()
        return sparsifier.masks["2:4"][0].int().tolist()
    first = [[1, 1, 0, 0, 1, 1, 0, 0], [1, 0, 1, 0, 0, 1, 0, 1]]
    assert sparsifier.masks["2:4"][0].int().tolist() == first       # of equal magnitudes the first two
    # half of the 4 groups, by their gaps 3 - 2, 0.5 - 0.5 and 8 - 7, 5 - 0: the second, and of the equal ones the first
    pruned = [[1, 0, 0, 0, 1, 0, 0, 0], first[1]]
    assert step() == pruned and sparsifier.masks.counts("2:4") == [6]
    assert step() == pruned                                         # phase J
    with torch.no_grad():                                           # as if phase Q had explored these
        weight[0, 3], weight[0, 6], weight[1, 3] = 3.5, -0.9, -70.0
    grown = [[1, 0, 0, 1, 1, 0, 1, 0], first[1]]                    # row 1 lacks nothing, so its strongest does not come
    assert step() == grown and sparsifier.masks.counts("2:4") == [8]
    # 0.25 (1 + cos(pi / 2)) of the groups: one. Gaps 3.5 - 3, 0.5 - 0.5 and 8 - 70, 5 - 0
    assert step() == [grown[0], [1, 0, 0, 0, 0, 1, 0, 1]] and step() and step() == [grown[0], [1, 0, 0, 1, 0, 1, 0, 1]]
    assert [record["kind"] for record in sparsifier.history] == ["prune", "grow"] * 2
    assert [record["flips"] for record in sparsifier.history] == [[2], [2], [1], [1]]
    assert sparsifier.phase == "train" and step() == [grown[0], [1, 0, 0, 1, 0, 1, 0, 1]]


def test_the_first_net_is_magnitude_n_of_m_or_random():
    net, _, sparsifier = make()
    assert sparsifier.config.start == "magnitude" and sparsifier.subnets == ("2:4",)
    assert all(torch.equal(mask, ops.nm_mask(weight, 2, 4, dim=1)) for mask, weight in zip(sparsifier.masks["2:4"], sparsifier.weights))
    _, _, drawn = make(start="random", nm="zeros 3:4")
    assert exact(drawn, NM(1, 4)) and drawn.subnets == ("1:4",)
    assert not torch.equal(drawn.masks["1:4"][0], ops.nm_mask(drawn.weights[0], 1, 4, dim=1))


# Every event.

@settings(max_examples=30)
@given(m=st.sampled_from([2, 4, 8]), keep=st.integers(1, 7), rows=st.integers(1, 4), groups=st.integers(1, 3), conv=st.booleans(),
       budget=st.floats(0.01, 1.0), j_steps=st.integers(0, 1), seed=st.integers(0, 99), score=st.sampled_from(["magnitude", "mean_magnitude"]),
       growth=st.sampled_from(["score", "random"]))
def test_groups_lack_at_most_one_and_are_full_after_growth(m, keep, rows, groups, conv, budget, j_steps, seed, score, growth):
    n = min(keep, m - 1)
    torch.manual_seed(seed)
    columns = groups * m
    layer = nn.Conv2d(columns, rows, (1, 2), bias=False) if conv else nn.Linear(columns, rows, bias=False)
    net = nn.Sequential(layer)
    x = torch.randn(5, columns, 2, 3) if conv else torch.randn(5, columns)
    sparsifier = IEE(net, torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.9), pattern="nm", nm=f"{n}:{m}", total_steps=12, end=9, h_steps=1,
                     j_steps=j_steps, q_steps=2 - j_steps, update_budget=budget, score=score, growth=growth)
    name, total = sparsifier.net, layer.weight.numel() // m
    assert exact(sparsifier, NM(n, m)) and sparsifier.cycles == 3
    for _ in range(12):
        before, events = sparsifier.masks[name][0].clone(), len(sparsifier.history)
        (net(x).sigmoid().sum() + net(x.flip(0)).square().mean()).backward()
        sparsifier.step()
        sparsifier.optimizer.zero_grad()
        mask = sparsifier.masks[name][0]
        kept = groups_kept(mask, m)
        assert sparsifier.masks.counts(name) == [int(mask.sum())]
        if len(sparsifier.history) == events:
            assert torch.equal(mask, before)
            continue
        record, magnitude = sparsifier.history[-1], layer.weight.detach().abs()
        lacking = group_values(groups_kept(before, m), 1)[:, :, 0] < n
        if record["kind"] == "prune":
            lost = min(max(1, math.floor(record["fraction"] * total)), total * n - 1)
            assert int((kept == n - 1).sum()) == lost and ((kept == n) | (kept == n - 1)).all() and (mask <= before).all()
        else:
            assert (kept == n).all() and (mask >= before).all()
            assert torch.equal(groups_kept(mask & ~before, m) == 1, lacking)
        if score == "magnitude" and (record["kind"] == "prune" or growth == "score"):
            gone = group_values(before & ~mask, m)
            come = group_values(mask & ~before, m)
            values, active = group_values(magnitude, m), group_values(before, m)
            weakest = values.masked_fill(~active, math.inf).amin(2, keepdim=True).expand_as(values)
            best = values.masked_fill(active, -math.inf).amax(2, keepdim=True).expand_as(values)
            assert torch.equal(values[gone], weakest[gone]) and torch.equal(values[come], best[come])
            if gone.any():
                gaps = (weakest - best)[:, :, 0]
                chosen = gone.any(2)
                assert gaps[chosen].max() <= gaps[~chosen].min() if (~chosen).any() else True
    assert exact(sparsifier, NM(n, m)) and sparsifier.phase == "train" and len(sparsifier.history) == 6


def test_while_exploring_only_inactive_weights_move_those_of_layers_without_groups_stand_still():
    with pytest.warns(UserWarning, match=r"left dense: 0.weight by 2:4 \(its 3 inputs do not divide into groups of 4\)"):
        net, _, sparsifier = make(skip_first=False)
    assert sparsifier.masks.layers == ("3.weight", "6.weight", "11.weight")
    phases = []
    for step in range(16):
        phase, masks = sparsifier.phase, [mask.clone() for mask in sparsifier.masks["2:4"]]
        before, others = [w.detach().clone() for w in sparsifier.weights], [net[0].weight.detach().clone(), net[1].running_mean.clone()]
        train(net, sparsifier, [step])
        moved = [w.detach() != old for w, old in zip(sparsifier.weights, before)]
        allowed = [~mask if phase == "explore" else mask for mask in masks]
        assert all((change <= may).all() and change.any() for change, may in zip(moved, allowed))
        assert all(torch.equal(old, new) == (phase == "explore") for old, new in zip(others, (net[0].weight, net[1].running_mean)))
        phases.append(phase)
    assert phases == (["estimate"] * 3 + ["improve"] * 2 + ["explore"] * 3) * 2
    row, = sparsifier.summary()
    assert list(row["left_dense"]) == ["0.weight"] and row["sparsity"] == row["target_sparsity"] == 0.5 and row["pattern"] == "2:4"


@pytest.mark.parametrize("fields", [{"freeze": False}, {"accuracy_improvement": False}, {"zero_init": True}, {"growth": "random"},
                                    {"h_steps": 1, "j_steps": 1, "q_steps": 1}, {"update_schedule": "exponential"}, {"nm": "1:8"}])
def test_with_every_switch_the_net_is_exact_in_the_end(fields):
    net, _, sparsifier = make(**fields)
    train(net, sparsifier, range(60))
    assert exact(sparsifier, sparsifier.form.pattern) and len(sparsifier.history) == 2 * sparsifier.cycles > 0
    assert all(record["sparsity"] == sparsifier.form.pattern.sparsity for record in sparsifier.history if record["kind"] == "grow")
    sparsifier.remove(sparsifier.net)
    assert all((groups_kept(w != 0, sparsifier.form.pattern.group) <= sparsifier.form.pattern.keep).all() for w in sparsifier.weights)


def test_n_equal_to_m_is_dense_training():
    net, _, sparsifier = make(nm="4:4")
    train(net, sparsifier, range(20))
    assert sparsifier.cycles == 0 and sparsifier.history == [] and sparsifier.phase == "train" and sparsifier.masks.sparsity("4:4") == 0


def test_a_layer_that_does_not_train_keeps_its_groups():
    net, _, sparsifier = make()
    net[6].weight.requires_grad_(False)
    before = sparsifier.masks["2:4"][1].clone()
    train(net, sparsifier, range(60))
    assert torch.equal(before, sparsifier.masks["2:4"][1]) and exact(sparsifier, NM(2, 4))
    assert all(record["flips"][1] == 0 and record["flips"][0] > 0 for record in sparsifier.history)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("stop, score", [(2, "mean_magnitude"), (3, "magnitude"), (5, "magnitude"), (7, "mean_magnitude"), (50, "magnitude")])
def test_a_resumed_run_is_bit_for_bit_the_unbroken_one(optimizer, stop, score):
    net, opt, sparsifier = make(optimizer=optimizer, score=score)
    train(net, sparsifier, range(stop))
    saved = copy.deepcopy((net.state_dict(), opt.state_dict(), sparsifier.state_dict()))
    saved[2]["meta"].update(json.loads(json.dumps(saved[2]["meta"])))
    losses = train(net, sparsifier, range(stop, 60))
    other, other_opt, again = make(optimizer=optimizer, score=score)
    train(other, again, range(1))
    other.load_state_dict(saved[0])
    other_opt.load_state_dict(saved[1])
    again.load_state_dict(saved[2])
    assert train(other, again, range(stop, 60)) == losses
    a, b = sparsifier.state_dict(), again.state_dict()
    assert a["meta"] == b["meta"] and a["tensors"].keys() == b["tensors"].keys()
    assert all(torch.equal(value.nan_to_num(-1), b["tensors"][key].nan_to_num(-1)) for key, value in a["tensors"].items())
    assert all(torch.equal(x, y) for x, y in zip(net.state_dict().values(), other.state_dict().values()))


def test_a_toy_problem_is_learned():
    net, _, sparsifier = make(total_steps=120, nm="1:4")
    train(net, sparsifier, range(120))
    net.eval()
    x, y = toy_batch(10_000, size=256)
    with torch.no_grad():
        assert (net(x).argmax(1) == y).float().mean() > 0.9
    assert sparsifier.history[-1]["kind"] == "grow" and sparsifier.history[-1]["iou"] > 0.5


def test_digits_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sparsekern.training.report.render", lambda report: "page")
    out = tmp_path / "run"
    assert main(["train", "iee", "--pattern", "nm", "--nm", "2:4", "--model", "mlp:64,32", "--batch-size", "32", "--epochs", "5", "--threads", "1",
                 "--device", "cpu", "--progress", "none", "--out", str(out)]) == 0
    assert "2:4      2:4      50.0000%  50.0000%" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    row, = report["subnets"]
    assert row["sparsity"] == 0.5 and row["accuracy"] > 0.8 and report["metrics"]["events"][-1]["kind"] == "grow"
    assert main(["train", "iee", "--config", str(out / "config.yaml"), "--out", str(tmp_path / "again")]) == 0
    assert json.loads((tmp_path / "again/report.json").read_text())["subnets"] == report["subnets"]


# Misuse.

@pytest.mark.parametrize("fields, message", [
    ({"nm": "4:2"}, "n is the number kept"), ({"nm": "2:4,1:4"}, "nm: IEE trains one net, expected one pattern, got '2:4,1:4'"),
    ({"nm": "1:64"}, "1:64 fits no layer"), ({"sparsity": 0.8}, "sparsity: belongs to pattern='unstructured', got 0.8 with pattern='nm'"),
    ({"allocation": "uniform"}, "allocation: belongs to pattern='unstructured'"), ({"start": "best"}, "start"),
    ({"pattern": "unstructured", "nm": "1:4"}, "nm: belongs to pattern='nm', got '1:4' with pattern='unstructured'"),
    ({"table": "table.json"}, "table: belongs to pattern='channel', got 'table.json' with pattern='nm'"),
    ({"pattern": "channel", "nm": "1:4"}, "nm: belongs to pattern='nm', got '1:4' with pattern='channel'"),
    ({"pattern": "n:m"}, "pattern: expected"),
])
def test_configurations_that_cannot_work_are_refused(fields, message):
    net = small_convnet()
    net.pop(-1)
    with pytest.raises(ValueError, match=message):
        algorithms.build("iee", net, torch.optim.SGD(net.parameters(), lr=0.1),
                         **({"pattern": "nm", "nm": "2:4", "total_steps": 100, "skip_first": True} | fields))
    assert not any("forward" in vars(module) for module in net.modules())


def test_nan_at_an_event_leaves_the_masks():
    net, _, sparsifier = make()
    train(net, sparsifier, range(2))
    backward(net, 2)
    with torch.no_grad():
        net[6].weight[1, 2] = math.nan
    before = sparsifier.masks.packed()
    with pytest.raises(ValueError, match="NaN in the weights of 6.weight"):
        sparsifier.step()
    assert all(torch.equal(value, before[key]) for key, value in sparsifier.masks.packed().items()) and sparsifier.history == []
