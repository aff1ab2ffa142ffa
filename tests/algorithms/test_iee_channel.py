"""IEE's structured form on a hand-made table: budgets at every event, what may move, resuming and slimming."""
import copy
import io

import pytest
import torch
from channel_runs import Small, backward, make, train
from torch import nn

from sparsekern.algorithms import build
from sparsekern.sparsity.slim import recalibrate
from sparsekern.testing import toy_batch


@pytest.fixture
def path(tmp_path):
    return tmp_path / "table.json"


PRETRAINED = {"start": "magnitude", "approach": 4, "approach_every": 2, "end": 50}


@pytest.mark.parametrize("fields", [{}, {"latency": 0.3}, {"latency": "3.3ms", "bundle": 4}, PRETRAINED, {"growth": "random"}, {"freeze": False},
                                    {"accuracy_improvement": False}, {"update_schedule": "cosine"}, {"min_keep": 2, "keep_first": True}])
def test_the_budget_is_met_at_every_event(path, fields):
    net, _, sparsifier = make(path, **fields)
    form = sparsifier.form
    if not form.lead():
        assert form.latency_ms <= form.target
    train(net, sparsifier, range(60))
    kinds = [record["kind"] for record in sparsifier.history]
    lead = kinds.count("approach")
    assert kinds == ["approach"] * lead + ["prune", "grow"] * sparsifier.cycles and sparsifier.cycles >= 4
    assert lead == (4 if fields is PRETRAINED else 0)
    full, events = form.budget.table.full_ms, sparsifier.history
    for number, record in enumerate(events):
        assert record["latency_ms"] == pytest.approx(form.budget.total_ms(record["channels"]))
        assert all(count >= form.budget.min_keep * form.budget.bundle for count in record["channels"].values())
        if record["kind"] == "approach":
            assert record["latency_ms"] <= full * (form.target / full) ** ((number + 1) / lead) + 1e-9
        else:
            aim = form.target * (1 - record["fraction"]) if record["kind"] == "prune" else form.target
            assert record["latency_ms"] <= max(aim, form.budget.limits()[0]) + 1e-9
        if fields.get("keep_first"):
            assert "stem" not in record["channels"]
    assert sparsifier.history[-1]["latency_ms"] > 0.8 * form.target
    assert sparsifier.masks.kept(sparsifier.net) == events[-1]["channels"]


def test_each_event_removes_or_adds_whole_channels_of_coupled_layers(path):
    net, _, sparsifier = make(path)
    form = sparsifier.form
    previous = form.keep
    for step in range(60):
        events = len(sparsifier.history)
        train(net, sparsifier, [step])
        now = form.keep
        for layer, mask in zip(sparsifier.layers, sparsifier.masks[sparsifier.net]):
            group = next(g for g in form.channels.groups if layer.name.rpartition(".")[0] in (*g.producers, *g.norms))
            assert torch.equal(mask, now[group.name].view(-1, *[1] * (mask.dim() - 1)).expand(mask.shape))
        if len(sparsifier.history) == events:
            assert all(torch.equal(now[name], previous[name]) for name in now)
        elif sparsifier.history[-1]["kind"] == "prune":
            assert not any((now[name] & ~previous[name]).any() for name in now)
        else:
            assert not any((previous[name] & ~now[name]).any() for name in now)
        previous = now


def snapshot(net, optimizer):
    values = {key: value.clone() for key, value in net.state_dict().items()}
    momenta = {name: optimizer.state[param]["momentum_buffer"].clone() if optimizer.state.get(param, {}).get("momentum_buffer") is not None
               else torch.zeros_like(param) for name, param in net.named_parameters()}
    return values, momenta


def test_what_moves_in_each_phase(path):
    net, optimizer, sparsifier = make(path)
    norms = [name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)]
    checked = set()
    for step in range(40):
        phase, active = sparsifier.phase, dict(zip(sparsifier.masks.layers, [m.clone() for m in sparsifier.masks[sparsifier.net]]))
        values, momenta = snapshot(net, optimizer)
        train(net, sparsifier, [step])
        ended = sparsifier.phase != phase
        after, momenta_after = snapshot(net, optimizer)
        for name, mask in active.items():
            explored = phase == "explore"
            fixed, free = (mask, ~mask) if explored else (~mask, mask)
            assert torch.equal(values[name][fixed], after[name][fixed]), (step, name)
            if free.any():
                moved = values[name][free] != after[name][free]
                assert moved.any()
            if not ended:
                assert torch.equal(momenta[name][fixed], momenta_after[name][fixed])
        frozen = [torch.equal(values[name], after[name]) for name in ("out.weight", "out.bias")]
        assert all(frozen) if phase == "explore" else not any(frozen)
        for name in norms:
            same = torch.equal(values[f"{name}.running_mean"], after[f"{name}.running_mean"])
            assert same == (phase == "explore")
        checked.add(phase)
    assert checked == {"estimate", "improve", "explore"}


def test_pruned_channels_keep_their_values_and_lose_their_momentum(path):
    net, optimizer, sparsifier = make(path)
    train(net, sparsifier, range(2))
    before = sparsifier.form.keep["conv1"]
    train(net, sparsifier, [2])                                     # ends phase H
    gone = before & ~sparsifier.form.keep["conv1"]
    assert gone.any() and (net.conv1.weight[gone] != 0).all() and (net.bn1.weight[gone] != 0).all()
    assert (optimizer.state[net.conv1.weight]["momentum_buffer"][gone] == 0).all()
    assert (optimizer.state[net.bn1.weight]["momentum_buffer"][gone] == 0).all()
    pruned = net.conv1.weight[gone].clone()
    train(net, sparsifier, [3, 4])                                  # phase J
    assert torch.equal(net.conv1.weight[gone], pruned)


def test_growth_follows_the_importance_of_phase_q(path):
    """The knapsack's choice is recomputed here from gradients gathered outside."""
    net, _, sparsifier = make(path)
    form = sparsifier.form
    train(net, sparsifier, range(5))
    importance, keep = {group.name: torch.zeros(group.channels) for group in form.channels.groups}, form.keep
    for step in range(5, 8):
        backward(net, step)
        for group in form.channels.groups:
            members = [net.get_submodule(name) for name in group.norms or group.producers]
            signed = [m.weight * m.weight.grad + m.bias * m.bias.grad if group.norms else (m.weight * m.weight.grad).sum(1) for m in members]
            importance[group.name] += sum(signed).abs().detach() / 3
        sparsifier.step()
    expected = form.budget.choose_grow(keep, importance, form.target)
    assert all(torch.equal(form.keep[name], mask) for name, mask in expected.items())
    assert sum(int((expected[name] & ~keep[name]).sum()) for name in keep) > 0


def test_random_starts_differ_by_seed_and_repeat(path):
    keeps = [make(path, seed=seed)[2].form.keep for seed in (0, 0, 1)]
    assert all(torch.equal(keeps[0][name], keeps[1][name]) for name in keeps[0])
    assert not all(torch.equal(keeps[0][name], keeps[2][name]) for name in keeps[0])


def test_a_pretrained_model_starts_whole(path):
    _, _, sparsifier = make(path, **PRETRAINED)
    assert all(mask.all() for mask in sparsifier.form.keep.values()) and sparsifier.phase == "approach"
    assert [phase.steps for phase in sparsifier.timeline.lead] == [2] * 4


def test_defaults_of_a_long_run(path):
    _, _, scratch = make(path, total_steps=13000, h_steps=None, j_steps=None, q_steps=None, end=None)
    assert scratch.config.end == 500 and scratch.config.h_steps == 20 and scratch.cycles == 8
    assert scratch.config.update_schedule == "exponential" and scratch.share(0) == pytest.approx(0.3)
    _, _, tuned = make(path, total_steps=14300, start="magnitude", h_steps=None, j_steps=None, q_steps=None, end=None)
    assert len(tuned.timeline.lead) == 30 and sum(phase.steps for phase in tuned.timeline.lead) == 1200
    assert tuned.config.end == 1200 + int(5 / 130 * 13100)


def test_the_whole_net_needs_no_cycles(path):
    net, _, sparsifier = make(path, latency=1.0)
    train(net, sparsifier, range(10))
    assert sparsifier.cycles == 0 and not sparsifier.history and sparsifier.phase == "train"
    assert all(mask.all() for mask in sparsifier.form.keep.values())


@pytest.mark.parametrize("optimizer", [lambda net: torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=1e-3),
                                       lambda net: torch.optim.AdamW(net.parameters(), 1e-3)])
@pytest.mark.parametrize("stop, fields", [(1, {}), (4, {}), (6, {}), (8, {}), (41, {}), (3, PRETRAINED), (13, PRETRAINED)])
def test_resuming_is_bit_exact(path, optimizer, stop, fields):
    straight, _, whole = make(path, optimizer=optimizer, **fields)
    train(straight, whole, range(50))

    net, first, sparsifier = make(path, optimizer=optimizer, **fields)
    train(net, sparsifier, range(stop))
    file = io.BytesIO()
    torch.save([net.state_dict(), first.state_dict(), sparsifier.state_dict()], file)
    file.seek(0)
    model_state, optimizer_state, state = torch.load(file)
    again, second, resumed = make(path, optimizer=optimizer, seed=0, net=Small(), **fields)
    again.load_state_dict(model_state)
    second.load_state_dict(optimizer_state)
    resumed.load_state_dict(state)
    train(again, resumed, range(stop, 50))
    assert all(torch.equal(value, straight.state_dict()[key]) for key, value in again.state_dict().items())
    assert resumed.history == whole.history


def test_a_table_that_changed_is_refused_on_resume(path):
    net, _, sparsifier = make(path)
    train(net, sparsifier, range(4))
    state = copy.deepcopy(sparsifier.state_dict())
    state["meta"]["extra"]["form"]["full_ms"] += 1
    _, _, other = make(path)
    with pytest.raises(ValueError, match="started with a table of 5.632 ms"):
        other.load_state_dict(state)


@pytest.mark.parametrize("fields", [{}, PRETRAINED])
def test_the_slimmed_net_is_the_masked_one(path, fields):
    net, _, sparsifier = make(path, **fields)
    train(net, sparsifier, range(60))
    images, form = toy_batch(99, 32)[0], sparsifier.form
    net.eval()
    with sparsifier.subnet(sparsifier.net):
        expected = net(images)
    kept, latency = sparsifier.masks.kept(sparsifier.net), form.latency_ms
    small = sparsifier.slim()
    assert type(small) is Small and (small(images) - expected).abs().max() <= 1e-5
    assert small.conv1.out_channels == kept["conv1"] and small.depthwise.groups == kept["conv2"] and small.out.in_features == kept["hidden"]
    from sparsekern.sparsity.latency import layer_widths
    assert form.budget.table.total_ms(layer_widths(small)) == pytest.approx(latency) and latency <= form.target
    recalibrate(small, [images])
    assert (small(images) - expected).abs().max() > 1e-3
    assert (net(images) - expected).abs().max() <= 1e-5             # and the model given is plain, with zeros


def test_it_learns(path):
    net, _, sparsifier = make(path, total_steps=120, end=60)
    first = sum(float(backward(net, 500 + step)) for step in range(4))
    net.zero_grad()
    train(net, sparsifier, range(120))
    assert sum(float(backward(net, 500 + step)) for step in range(4)) < 0.5 * first


def test_hooked_optimizers_and_gradient_scalers(path):
    straight, _, sparsifier = make(path)
    train(straight, sparsifier, range(20))
    net, optimizer, hooked = make(path)
    hooked.hook()
    for step in range(20):
        optimizer.zero_grad()
        backward(net, step)
        optimizer.step()
    assert [record["channels"] for record in hooked.history] == [record["channels"] for record in sparsifier.history]


@pytest.mark.parametrize("fields, words", [
    ({"latency": 0.05}, "below the smallest net"), ({"latency": "99ms"}, "above the full net"), ({"table": None}, "table: expected the path"),
    ({"zero_init": True}, "zero_init: a channel whose"), ({"only": "conv"}, "only: channels are chosen in coupled groups"),
    ({"skip_first": True}, "skip_first: .* use keep_first"), ({"score": "magnitude"}, "score: expected one of taylor"),
    ({"start": "magnitude", "approach": 0}, "approach, approach_every"),
    ({"start": "magnitude", "approach": 6, "approach_every": 10, "end": None}, "product below the 60 steps"), ({"end": 5}, "no cycle of 3"),
    ({**PRETRAINED, "end": 4}, "no cycle of 3"), ({"approach": 4}, "approach: 4 has no effect without start='magnitude'"),
    ({"approach_every": 2}, "approach_every: 2 has no effect without start='magnitude'")])
def test_bad_settings_change_nothing(path, fields, words):
    torch.manual_seed(3)
    net = Small()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=words):
        make(path, net=net, **fields)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any("forward" in vars(module) for module in net.modules())


def test_slimming_is_for_channels_alone():
    net = Small()
    sparsifier = build("iee", net, torch.optim.SGD(net.parameters(), 0.1), total_steps=100)
    with pytest.raises(ValueError, match="pattern='unstructured' removes no channels"):
        sparsifier.slim()
