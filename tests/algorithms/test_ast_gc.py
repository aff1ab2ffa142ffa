"""AST-GC against its pseudo-code: events, exact sparsity, the correction, and configurations that cannot work."""
import math

import pytest
import torch
from ast_gc_runs import SUBNETS, backward, make, one_thread, train  # noqa: F401

from sparsekern import algorithms
from sparsekern.algorithms import Magnitude
from sparsekern.sparsity.patterns import kept
from sparsekern.testing import small_convnet, toy_batch

# The timeline.

def expected_events(sparsity, total, delta_t, offset, start, end, initial=0.0):
    """[(step, sub-net, kept share)] by the letter of the procedure: event n is due from delta_t n + i N offset on."""
    n_subnets, events, done = len(sparsity), [], [0] * len(sparsity)
    for t in range(total):
        i = t % n_subnets
        n = done[i] + 1
        while n * delta_t < start:
            n += 1
        if t >= delta_t * n + i * n_subnets * offset:
            done[i] = n
            x = min(1.0, (n - start // delta_t) / max(1, end // delta_t - start // delta_t))
            events.append((t, str(sparsity[i]), sparsity[i] + (initial - sparsity[i]) * (1 - x) ** 3))
    return events


@pytest.mark.parametrize("total, delta_t, offset, start, end, initial", [
    (60, 6, 1, 0, 30, 0.0), (60, 7, 0, 0, 40, 0.0), (80, 5, 2, 11, 42, 0.0), (60, 9, 1, 0, 36, 0.5), (40, 3, 0, 0, 27, 0.0)])
def test_events_and_sparsities_are_those_of_the_pseudo_code(total, delta_t, offset, start, end, initial):
    net, _, sparsifier = make(total_steps=total, delta_t=delta_t, offset=offset, prune_start=start, prune_end=end, initial_sparsity=initial)
    seen = []
    for step in range(total):
        active, events = sparsifier.active, len(sparsifier.history)
        assert active == str(SUBNETS[step % 3])
        train(net, sparsifier, [step])
        if len(sparsifier.history) > events:
            assert sparsifier.history[-1]["step"] == step and sparsifier.history[-1]["subnet"] == active
            counts = [int(mask.sum()) for mask in sparsifier.masks[active]]
            assert counts == sparsifier.masks.counts(active)
            seen.append((step, active, sum(counts)))
    numel = sparsifier.masks.numel
    assert seen == [(t, name, kept(numel, s)) for t, name, s in expected_events(SUBNETS, total, delta_t, offset, start, end, initial)]
    for row, target in zip(sparsifier.summary(), SUBNETS):
        assert row["nnz"] == kept(numel, target) and row["target_sparsity"] == target
        assert row["sparsity_of_all_parameters"] == (numel - row["nnz"]) / sum(p.numel() for p in net.parameters())


def test_default_schedule_is_a_share_of_the_run():
    for total in (30, 200, 62_560):
        _, _, sparsifier = make(total_steps=total)
        c = sparsifier.config
        assert c.delta_t == 3 * max(1, total // 189) and c.offset == c.delta_t // 10 and c.prune_end == int(0.69 * total)


@pytest.mark.parametrize("initial", [0.5, 0.9])
def test_a_sparse_start_is_erk_and_zero_outside(initial):
    net, _, sparsifier = make(sparsity=(0.9, 0.95), initial_sparsity=initial)
    for name in sparsifier.subnets:
        assert sparsifier.masks.nnz(name) == kept(sparsifier.masks.numel, initial)
    for weight, mask in zip(sparsifier.weights, sparsifier.masks["0.9"]):
        assert (weight[~mask] == 0).all() and (weight[mask] != 0).all()
    densities = [count / numel for count, numel in zip(sparsifier.masks.counts("0.9"), sparsifier.masks.numels)]
    assert len(set(densities)) > 1
    train(net, sparsifier, range(60))
    assert [row["nnz"] for row in sparsifier.summary()] == [kept(sparsifier.masks.numel, s) for s in (0.9, 0.95)]


def test_an_event_drops_small_weights_and_grows_where_the_dense_gradient_is_large():
    net, _, sparsifier = make(sparsity=[0.8], total_steps=20, delta_t=4, prune_end=4, prune_fraction=0.2, prune_fraction_end=0.2)
    train(net, sparsifier, range(8))                                # the first event has set the sparsity; step 8 only exchanges
    weights, old = [w.detach().clone() for w in sparsifier.weights], [m.clone() for m in sparsifier.masks["0.8"]]
    backward(net, 8)
    grads = [w.grad.clone() for w in sparsifier.weights]
    assert all((g[~m] != 0).any() for g, m in zip(grads, old))
    sparsifier.step()
    for w, g, before, after in zip(weights, grads, old, sparsifier.masks["0.8"]):
        count = math.ceil(0.2 * int(before.sum()))
        order = w.abs().masked_fill(~before, math.inf).flatten().argsort(stable=True)
        staying = before.flatten().clone()
        staying[order[:count]] = False
        candidates = g.abs().flatten().masked_fill(staying, -1)
        staying[candidates.argsort(descending=True, stable=True)[:count]] = True
        assert torch.equal(after.flatten(), staying)


def test_drop_over_all_ranks_hidden_weights_too():
    net, _, sparsifier = make(sparsity=[0.8], total_steps=20, delta_t=4, prune_end=4, prune_fraction=0.2, prune_fraction_end=0.2,
                              drop_over_all=True)
    train(net, sparsifier, range(8))
    with torch.no_grad():
        hidden = (~sparsifier.masks["0.8"][0]).nonzero()[0].tolist()
        sparsifier.weights[0][tuple(hidden)] = 100.0
    train(net, sparsifier, [8])
    assert sparsifier.masks["0.8"][0][tuple(hidden)] and sparsifier.masks.nnz("0.8") == kept(sparsifier.masks.numel, 0.8)


def test_nested_sub_nets_lie_inside_each_other_at_every_step():
    net, _, sparsifier = make(nested=True, delta_t=5, offset=1, prune_end=35)
    for step in range(60):
        train(net, sparsifier, [step])
        for outer, inner in zip(sparsifier.subnets, sparsifier.subnets[1:]):
            assert all((b <= a).all() for a, b in zip(sparsifier.masks[outer], sparsifier.masks[inner]))
            assert sparsifier.masks.counts(inner) == [int(m.sum()) for m in sparsifier.masks[inner]]
    assert [row["nnz"] for row in sparsifier.summary()] == [kept(sparsifier.masks.numel, s) for s in SUBNETS]
    assert any(record["fraction"] for record in sparsifier.history)
    assert not any(record["fraction"] for record in sparsifier.history if record["subnet"] != "0.5")


# The correction.


@pytest.mark.parametrize("fields", [{}, {"gc_mode": "global"}, {"leaky": True}, {"gc_scope": "all"}])
@pytest.mark.parametrize("optimizer", ["plain", "hooked"])
def test_the_applied_gradient_never_conflicts_and_the_projection_fires(optimizer, fields):
    net, opt, sparsifier = make("plain", dtype=torch.float64, lr=0.1, **fields)
    if optimizer == "hooked":
        sparsifier.hook()
    previous, negative, fired = None, 0, 0
    for step in range(60):
        active = sparsifier.active
        backward(net, step)
        raw, weights = [w.grad.clone() for w in sparsifier.weights], [w.detach().clone() for w in sparsifier.weights]
        opt.step() if optimizer == "hooked" else sparsifier.step()
        opt.zero_grad()
        masks = sparsifier.masks[active]
        raw = [g * m for g, m in zip(raw, masks)]
        applied = [(b - w) / 0.1 for b, w in zip(weights, sparsifier.weights)]
        if previous is not None:
            seen = [p * m for p, m in zip(previous, masks)]
            before = torch.stack([(g * p).sum() for g, p in zip(raw, seen)])
            after = torch.stack([(a * p).sum() for a, p in zip(applied, seen)])
            norms = torch.stack([p.norm() * g.norm() for g, p in zip(raw, seen)])
            if fields.get("gc_mode") == "global":
                before, after, norms = before.sum()[None], after.sum()[None], norms.sum()[None]
            if step % 3 or fields.get("gc_scope") == "all":
                assert (after >= -1e-9 * norms - 1e-12).all()
                torch.testing.assert_close(after[before > 0], before[before > 0], rtol=1e-6, atol=1e-10)
                fired += int((before < 0).sum())
            else:
                torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-10)    # noise between groups stays
            negative += int((before < 0).sum())
        previous = raw
    rates = sparsifier.metrics()["projection"]
    assert fired > 0 and rates["steps"] == (59 if fields.get("gc_scope") == "all" else 40)
    layers = len(sparsifier.layers)
    expected = fired / rates["steps"] if fields.get("gc_mode") == "global" else fired / (rates["steps"] * layers)
    assert rates["fire_rate"] == pytest.approx(expected) and set(rates["per_layer"]) == set(sparsifier.masks.layers)


def test_measuring_changes_nothing():
    weights = []
    for metrics in (True, False):
        net, _, sparsifier = make(gc=False, metrics=metrics)
        train(net, sparsifier, range(30))
        weights.append([w.detach().clone() for w in net.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-8) for a, b in zip(*weights))


def test_metrics():
    net, _, sparsifier = make()
    train(net, sparsifier, range(60))
    metrics = sparsifier.metrics()
    inner, inter = metrics["sign_ratio"]["inner"], metrics["sign_ratio"]["inter"]
    assert inner["measured"] == 40 and inter["measured"] == 19          # step 0 has nothing before it
    assert inner["negative"] + inner["positive"] == pytest.approx(1) and 0 < inter["negative"] < 1
    assert [pair["subnets"] for pair in metrics["overlap"]] == [["0.5", "0.8"], ["0.5", "0.9"], ["0.8", "0.9"]]
    for pair in metrics["overlap"]:
        a, b = (sparsifier.masks[name] for name in pair["subnets"])
        assert pair["non_overlap"] == sum(int((x ^ y).sum()) for x, y in zip(a, b)) / sparsifier.masks.numel >= pair["least"] > 0
        assert all(layer["non_overlap"] >= layer["least"] for layer in pair["layers"].values())
    assert len(metrics["events"]) == len(sparsifier.history) and all(record["flips"] > 0 for record in metrics["events"][:10])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_sparsity_0_is_dense_training_step_for_step(optimizer):
    net, _, sparsifier = make(optimizer, sparsity=[0.0], total_steps=30)
    torch.manual_seed(1)
    dense = small_convnet()
    plain = (torch.optim.SGD(dense.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3, nesterov=True) if optimizer == "sgd"
             else torch.optim.Adam(dense.parameters(), lr=1e-3, weight_decay=1e-3))
    for step in range(30):
        train(net, sparsifier, [step])
        backward(dense, step)
        plain.step()
        plain.zero_grad()
        for (name, a), b in zip(net.state_dict().items(), dense.state_dict().values()):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7, msg=f"step {step}, {name}")


# What comes out.

def test_a_toy_problem_is_learned_by_every_sub_net():
    net, _, sparsifier = make(total_steps=150)
    train(net, sparsifier, range(150))
    net.eval()
    x, y = toy_batch(10_000, size=256)
    inside = {}
    for name in sparsifier.subnets:
        with sparsifier.subnet(name) as model, torch.no_grad():
            inside[name] = (model(x).argmax(1) == y).float().mean().item()
    assert all(accuracy > 0.9 for accuracy in inside.values()), inside


def test_one_sub_net_is_gradual_pruning_and_so_is_magnitude():
    torch.manual_seed(1)
    net = small_convnet()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    sparsifier = algorithms.build("magnitude", net, optimizer, sparsity=0.9, total_steps=40)
    assert isinstance(sparsifier, Magnitude) and sparsifier.subnets == ("0.9",)
    losses = train(net, sparsifier, range(40))
    assert losses[-1] < losses[0] and sparsifier.masks.nnz("0.9") == kept(sparsifier.masks.numel, 0.9)
    assert "projection" not in sparsifier.metrics()


def test_dense_is_the_optimizer_in_the_shape_of_an_algorithm():
    nets = []
    for built in (False, True):
        torch.manual_seed(1)
        net = small_convnet()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        sparsifier = algorithms.build("dense", net, optimizer, total_steps=10) if built else None
        for step in range(10):
            backward(net, step)
            sparsifier.step() if built else optimizer.step()
            optimizer.zero_grad()
        nets.append(net)
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters()))
    assert sparsifier.subnets == ("dense",) and sparsifier.active == "dense" and sparsifier.summary()[0]["sparsity"] == 0
    with sparsifier.subnet("dense") as model:
        assert model is nets[1]
    sparsifier.load_state_dict(sparsifier.state_dict())
    assert sparsifier.metrics()["events"] == []


def test_the_first_norm_is_shared_and_banks_can_be_turned_off():
    _, _, sparsifier = make()
    assert {key.split(".")[0] for key in sparsifier.norms.banks[0]} == {"4", "7"}
    _, _, sparsifier = make(share_first_norm=False)
    assert {key.split(".")[0] for key in sparsifier.norms.banks[0]} == {"1", "4", "7"}
    _, _, sparsifier = make(norm_banks=False)
    assert sparsifier.norms.banks == [{}]


# Misuse.

@pytest.mark.parametrize("fields, message", [
    ({"sparsity": [0.9, 1.0]}, r"fraction of zeros in \[0, 1\), got 1.0"),
    ({"sparsity": [90, 95]}, "did you mean 0.9"),
    ({"sparsity": []}, "one or more different"),
    ({"sparsity": [0.9, 0.9]}, "one or more different"),
    ({"initial_sparsity": 0.6}, "start at 0.5 or below"),
    ({"initial_sparsity": -1.0}, r"fraction of zeros in \[0, 1\)"),
    ({"sparsity": [0.9, 0.8], "nested": True}, "sort them"),
    ({"gc_mode": "group"}, "gc_mode: expected 'layer' or 'global', got 'group'"),
    ({"gc_scope": "outer"}, "gc_scope"),
    ({"prune_fraction": 1.5}, "prune_fraction"),
    ({"delta_t": 0}, "delta_t"),
    ({"total_steps": 0}, "total_steps"),
    ({"delta_t": 50, "prune_end": 40}, "lower delta_t or train for more than 60 steps"),
    ({"delta_t": 6, "prune_end": 54, "offset": 4}, "sub-net 2 would reach its sparsity at step 80 of 60; lower prune_end"),
    ({"prune_end": 60, "delta_t": 3}, "would reach its sparsity at step"),
    ({"only": "nothing"}, "nothing to prune"),
])
def test_configurations_that_cannot_work_are_refused(fields, message):
    net = small_convnet()
    with pytest.raises(ValueError, match=message):
        make(net=net, **fields)
    assert not any("forward" in vars(module) for module in net.modules())


@pytest.mark.parametrize("step, nested", [(6, False), (36, False), (7, True)])
def test_nan_at_an_event_names_the_layer_and_leaves_the_masks(step, nested):
    net, _, sparsifier = make(delta_t=6, offset=0, prune_end=18, nested=nested)
    train(net, sparsifier, range(step))
    assert sparsifier.event_due(step)
    backward(net, step)
    with torch.no_grad():
        net[6].weight[1, 2] = math.nan
    before, history = sparsifier.masks.packed(), len(sparsifier.history)
    with pytest.raises(ValueError, match=f"step {step}: NaN in the weights of 6.weight"):
        sparsifier.step()
    assert all(torch.equal(value, before[key]) for key, value in sparsifier.masks.packed().items())
    assert len(sparsifier.history) == history and sparsifier.steps == step


def test_an_unknown_algorithm_names_the_known_ones():
    with pytest.raises(ValueError, match="expected one of ast-gc, dense, magnitude, static, set, rigl, gse, iee, halp, sparse-cocktail, got 'sgd'"):
        algorithms.build("sgd", small_convnet(), None)
