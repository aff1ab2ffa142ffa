"""GSE against algorithm 2 of its paper."""
import copy
import math

import pytest
import torch
from dynamic_runs import accuracy, assert_same_state, backward, make, make_gse, one_thread, places, resumed, state, train, values  # noqa: F401
from torch import nn

import sparsekern
from sparsekern.nn import SparseConv2d, SparseLinear
from sparsekern.sparsity import taps
from sparsekern.sparsity.patterns import kept
from sparsekern.sparsity.stores import Move
from sparsekern.testing import small_convnet, toy_batch, watch_allocations

# The start.


def test_the_start_is_er_scaled_to_fan_in_and_the_optimizer_holds_values():
    torch.manual_seed(1)
    net = small_convnet()
    groups = [{"params": [p for p in net.parameters() if p.dim() > 1], "weight_decay": 1e-3},
              {"params": [p for p in net.parameters() if p.dim() == 1]}]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
    bias = net[11].bias
    sparsifier = sparsekern.GSE(net, optimizer, sparsity=0.8, total_steps=100)
    assert [type(net[i]) for i in (0, 3, 6, 11)] == [SparseConv2d] * 3 + [SparseLinear]
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(net[i].values) for i in (0, 3, 6, 11)] and net[11].bias is bias
    assert sparsifier.masks.layers == ("0.weight", "3.weight", "6.weight", "11.weight") and sparsifier.masks.nnz("0.8") == kept(1880, 0.8)
    row, = sparsifier.summary()
    assert row["sparsity"] == 0.8 and row["prunable"] == 1880 and row["sparsity_of_all_parameters"] == 1504 / (1880 + 20 + 2 * 40)
    for index in range(4):
        crow, _, own = sparsifier.store.pattern(index)
        fan_in = torch.repeat_interleave(crow.diff(), crow.diff())
        assert (own.abs() <= (3 / fan_in).sqrt()).all() and own.abs().max() > 0.5 * (3 / fan_in.max()).sqrt()
    assert sparsifier.config.delta_t == 1 and sparsifier.config.end == 60 and make("gse", total_steps=78_000)[2].config.delta_t == 1000


def test_keep_takes_values_and_momentum_from_where_they_were():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.randn(4, 6)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    weight, momentum = net[0].weight.detach().clone(), optimizer.state[net[0].weight]["momentum_buffer"].clone()
    sparsifier = sparsekern.GSE(net, optimizer, sparsity=0.5, total_steps=100, init="keep")
    assert torch.equal(values(sparsifier)[0], weight.flatten()[places(sparsifier)[0]])
    assert torch.equal(optimizer.state[net[0].values]["momentum_buffer"], momentum.flatten()[places(sparsifier)[0]])
    sparsifier.remove(sparsifier.net)
    assert isinstance(net[0], nn.Linear) and torch.equal(net[0].weight[net[0].weight != 0], weight.flatten()[places_of(net[0])])
    assert optimizer.state[net[0].weight]["momentum_buffer"].shape == (5, 6) and optimizer.param_groups[0]["params"][0] is net[0].weight


def places_of(linear):
    return linear.weight.flatten().nonzero().flatten()


def test_layers_that_are_sparse_already_are_taken_as_they_are():
    net = nn.Sequential(SparseLinear.from_shape(6, 50, sparsity=0.9), nn.ReLU(), nn.Linear(50, 4))
    before = net[0].values.detach().clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sparsifier = sparsekern.GSE(net, optimizer, sparsity=0.5, total_steps=100, delta_t=5)
    assert torch.equal(net[0].values, before) and sparsifier.masks.counts(sparsifier.net) == [30, 100]
    for _ in range(12):
        net(torch.randn(8, 6)).square().mean().backward()
        sparsifier.step()
    assert len(sparsifier.history) == 2 and sparsifier.masks.counts(sparsifier.net) == [30, 100]


# An event.


@pytest.mark.parametrize("scope", ["local", "global"])
def test_an_event_follows_the_pseudo_code(scope):
    net, opt, sparsifier = make_gse(scope=scope, event_skips_update=True, prune_schedule="constant", distribution="grabo")
    train(net, sparsifier, range(4))
    old, weights = places(sparsifier), [v.clone() for v in values(sparsifier)]
    momenta = [opt.state[layer.param]["momentum_buffer"].clone() for layer in sparsifier.layers]
    backward(net, 4)
    samples = copy.deepcopy(sparsifier._samples)
    sparsifier.step()
    drop, grow = [], []
    if scope == "local":
        for index, weight in enumerate(weights):
            grads = samples[index].fresh
            k = min(math.ceil(0.2 * len(weight)), len(grads))
            drop.append(set(weight.abs().argsort(stable=True)[:k].tolist()))
            grow.append(set(grads.abs().argsort(descending=True, stable=True)[:k].tolist()))
    else:
        every = torch.cat([samples[i].fresh.abs() for i in range(4)])
        k = min(int(0.2 * sum(map(len, weights)) + 0.5), len(every))
        chosen = torch.zeros_like(every, dtype=torch.bool)
        chosen[every.argsort(descending=True, stable=True)[:k]] = True
        grow = [set(part.nonzero().flatten().tolist()) for part in chosen.split([len(samples[i].fresh) for i in range(4)])]
        every = torch.cat([weight.abs() for weight in weights])
        chosen = torch.zeros_like(every, dtype=torch.bool)
        chosen[every.argsort(stable=True)[:k]] = True
        drop = [set(part.nonzero().flatten().tolist()) for part in chosen.split([len(weight) for weight in weights])]
    for index, (layer, after, now) in enumerate(zip(sparsifier.layers, places(sparsifier), values(sparsifier))):
        cols = layer.shape[1:].numel()
        keys = samples[index].rows.long() * cols + samples[index].cols
        assert not set(keys.tolist()) & set(old[index].tolist())
        staying = [place for at, place in enumerate(old[index].tolist()) if at not in drop[index]]
        come = [keys[at].item() for at in grow[index]]
        assert after.tolist() == sorted(staying + come) and len(come) > 0
        stayed = ~torch.isin(after, keys)
        kept_ones = torch.tensor([at not in drop[index] for at in range(len(old[index]))])
        momentum = opt.state[layer.param]["momentum_buffer"]
        assert torch.equal(now[stayed], weights[index][kept_ones]) and (now[~stayed] == 0).all()
        assert torch.equal(momentum[stayed], momenta[index][kept_ones]) and (momentum[~stayed] == 0).all()
    assert sparsifier.masks.nnz(sparsifier.net) == sum(map(len, weights))


def test_the_update_of_an_event_step_moves_the_new_connections_by_their_gradient():
    net, opt, sparsifier = make_gse(optimizer="plain", prune_schedule="constant")
    train(net, sparsifier, range(4))
    old = places(sparsifier)
    backward(net, 4)
    samples = copy.deepcopy(sparsifier._samples)
    sparsifier.step()
    for index, (layer, after, now) in enumerate(zip(sparsifier.layers, places(sparsifier), values(sparsifier))):
        keys = samples[index].rows.long() * layer.shape[1:].numel() + samples[index].cols
        grown = ~torch.isin(after, old[index])
        grads = samples[index].fresh[torch.isin(keys, after)]
        torch.testing.assert_close(now[grown], -0.05 * grads)
        assert grown.any()


def test_a_large_gamma_chooses_as_rigl_does():
    net, _, sparsifier = make_gse(gamma=300.0, storage="masked", prune_schedule="constant", event_skips_update=True)
    train(net, sparsifier, range(4))
    masks = [mask.clone() for mask in sparsifier.masks[sparsifier.net]]
    backward(net, 4)
    grads = [weight.grad.clone() for weight in sparsifier.weights]
    sparsifier.step()
    for grad, before, after in zip(grads, masks, sparsifier.masks[sparsifier.net]):
        k = math.ceil(0.2 * int(before.sum()))
        best = grad.abs().masked_fill(before, -1).flatten().argsort(descending=True, stable=True)[:k]
        assert set(best.tolist()) == set((after & ~before).flatten().nonzero().flatten().tolist())


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.9, 0.97])
def test_sparsity_is_exact_and_no_layer_runs_dry(sparsity, scope):
    net, _, sparsifier = make_gse(sparsity=sparsity, scope=scope, delta_t=2, prune_fraction=0.9, prune_schedule="constant", only="[036]")
    start = sparsifier.masks.counts(sparsifier.net)
    for step in range(24):
        train(net, sparsifier, [step])
        counts = sparsifier.masks.counts(sparsifier.net)
        assert sum(counts) == kept(sparsifier.masks.numel, sparsity) and min(counts) > 0 and (counts == start or scope == "global")
        for module, count in zip((net[0], net[3], net[6]), counts):
            assert module.nnz == count == module.col.numel() == module.crow[-1]
    assert scope == "local" or counts != start


def test_records_tell_candidates_growth_and_survival():
    net, _, sparsifier = make_gse(delta_t=3, prune_schedule="constant")
    before = places(sparsifier)
    train(net, sparsifier, range(3))
    first = places(sparsifier)
    train(net, sparsifier, range(3, 6))
    second = places(sparsifier)
    one, two = sparsifier.metrics()["events"]
    grown = [set(b.tolist()) - set(a.tolist()) for a, b in zip(before, first)]
    assert one["grown"] == [len(g) for g in grown] and one["flips"] == 2 * sum(one["grown"]) and one["survival"] is None
    lost = sum(len(g - set(b.tolist())) for g, b in zip(grown, second))
    assert two["survival"] == pytest.approx(1 - lost / sum(map(len, grown)))
    assert all(0 < c <= n for c, n in zip(two["candidates"], two["nnz"]))


@pytest.mark.parametrize("distribution", ["grabo", "graest"])
def test_the_heuristic_goes_with_the_gradient(distribution):
    net, _, sparsifier = make_gse(distribution=distribution, storage="masked", sparsity=0.5)
    train(net, sparsifier, range(10))
    seen = {}
    handles = [taps.Tap(layer.modules, lambda module, h, d, name=layer.name: seen.update({name: (module, h, d)})) for layer in sparsifier.layers]
    found = []
    for step in range(14, 50, 5):                                   # steps whose gradients are dense
        while sparsifier.steps < step:
            train(net, sparsifier, [sparsifier.steps])
        for tap in handles:
            tap.open = True
        backward(net, step)
        for layer in sparsifier.layers:
            rows, cols = taps.activities(*seen[layer.name], signed=distribution == "graest", seed=step)
            product = (rows[:, None] * cols).abs().flatten()
            found.append(torch.corrcoef(torch.stack([product, layer.param.grad.abs().flatten()]))[0, 1].item())
        sparsifier.step()
        sparsifier.optimizer.zero_grad()
    assert sum(found) / len(found) > (0.4 if distribution == "grabo" else 0.05), found


# The run.


@pytest.mark.parametrize("fields", [{"scope": "global"}, {"event_batches": 3}, {"optimizer": "adam", "scope": "global", "distribution": "graest"},
                                    {"storage": "masked", "event_batches": 3}])
@pytest.mark.parametrize("stop, first", [(7, True), (13, False), (14, True), (15, False)])
def test_a_resumed_run_is_bit_for_bit_the_unbroken_one(fields, stop, first):
    fields = dict(fields)
    unbroken, again = resumed("gse", fields.pop("optimizer", "sgd"), stop, 32, sparsifier_first=first, delta_t=5, end=50, **fields)
    assert unbroken[0] == again[0]
    assert_same_state(unbroken[1], again[1])


@pytest.mark.parametrize("distribution", ["uniform", "grabo", "graest"])
def test_it_learns(distribution):
    net, _, sparsifier = make_gse(total_steps=150, delta_t=5, end=100, distribution=distribution)
    train(net, sparsifier, range(150))
    assert accuracy(net) > 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_learns_in_half_precision(dtype):
    """Under autocast (inputs float32, output gradients bfloat16), and as a model that is bfloat16 itself; channels-last images."""
    net, opt, sparsifier = make_gse(distribution="grabo", dtype=dtype, total_steps=100)
    losses = []
    for step in range(60):
        x, y = toy_batch(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            loss = nn.functional.cross_entropy(net(x.to(dtype).contiguous(memory_format=torch.channels_last)).float(), y)
        loss.backward()
        sparsifier.step()
        opt.zero_grad()
        losses.append(loss.item())
    assert len(sparsifier.history) == 10 and sum(losses[-10:]) < 0.5 * sum(losses[:10]) and net[3].values.dtype == dtype


def test_hook_equals_step():
    nets = []
    for hooked in (False, True):
        net, opt, sparsifier = make_gse(optimizer="adam", dtype=torch.float64)
        if hooked:
            sparsifier.hook()
        for step in range(22):
            backward(net, step)
            opt.step() if hooked else sparsifier.step()
            opt.zero_grad()
        nets.append((places(sparsifier), values(sparsifier)))
    assert all(torch.equal(a, b) for kind in (0, 1) for a, b in zip(nets[0][kind], nets[1][kind]))


def test_an_event_that_the_scaler_skipped_takes_place_in_the_next_step():
    net, opt, sparsifier = make_gse(event_batches=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** 10)
    for step in range(12):
        before = state(net, opt, sparsifier)[:2]
        backward(net, step, scaler, math.inf if step == 4 else 1.0)
        sparsifier.step(scaler=scaler)
        scaler.update()
        opt.zero_grad()
        if step == 4:
            after = state(net, opt, sparsifier)[:2]
            assert all(torch.equal(after[0][key], before[0][key]) for key in before[0] if key.endswith(("values", "col", "crow")))
    assert [record["step"] for record in sparsifier.history] == [5, 9]
    assert all(bool(v.isfinite().all()) for v in values(sparsifier))


def test_not_finite_candidates_wait_for_the_next_step():
    net, _, sparsifier = make_gse()
    train(net, sparsifier, range(4))
    before = places(sparsifier)
    backward(net, 4)
    sparsifier._samples[1].fresh[0] = math.inf
    sparsifier.step()
    assert sparsifier.history == [] and all(torch.equal(a, b) for a, b in zip(before, places(sparsifier))) and sparsifier._samples == {}
    sparsifier.optimizer.zero_grad()
    train(net, sparsifier, [5])
    assert [record["step"] for record in sparsifier.history] == [5]


def test_subnet_and_remove():
    net, opt, sparsifier = make_gse()
    train(net, sparsifier, range(12))
    net.eval()
    x = toy_batch(0)[0]
    with sparsifier.subnet("0.8") as model, torch.no_grad():
        expected = model(x)
    twin = copy.deepcopy((net, opt, sparsifier))
    assert sparsifier.remove() is net and isinstance(net[3], SparseConv2d) and torch.equal(net(x), expected)
    net, opt, sparsifier = twin
    with pytest.raises(ValueError, match="unknown sub-net '0.5'"):
        sparsifier.remove("0.5")
    sparsifier.remove("0.8")
    assert [type(net[i]) for i in (0, 3, 6, 11)] == [nn.Conv2d] * 3 + [nn.Linear]
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)
    assert sum(int((net[i].weight != 0).sum()) for i in (0, 3, 6, 11)) == kept(1880, 0.8)
    assert {id(p) for p in opt.param_groups[0]["params"]} == {id(p) for p in net.parameters()}
    backward(net, 0)
    opt.step()


def test_nothing_of_a_dense_weights_size_is_made():
    """1000 x 1200 weights, 99 % sparse, batches of 8: forward, backward, update and events. Not even one byte for each weight."""
    net = nn.Sequential(SparseLinear.from_shape(1000, 1200, sparsity=0.99), nn.ReLU(), SparseLinear.from_shape(1200, 1000, sparsity=0.99))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for distribution in ("uniform", "grabo", "graest"):
        sparsifier = sparsekern.GSE(net, optimizer, total_steps=30, delta_t=2, distribution=distribution)
        with watch_allocations(1000 * 1200) as watch:
            for _ in range(4):
                net(torch.randn(8, 1000)).square().mean().backward()
                sparsifier.step()
        assert len(sparsifier.history) == 2 and 0 < watch.largest < 1000 * 1200
        sparsifier.remove()


# Misuse.


@pytest.mark.parametrize("fields, message", [
    ({"gamma": 0.0}, "gamma: expected a positive number"), ({"gamma": -1.0}, "gamma"), ({"gamma": math.inf}, "gamma"), ({"gamma": math.nan}, "gamma"),
    ({"distribution": "synflow"}, "distribution: expected one of uniform, grabo, graest"), ({"scope": "layer"}, "scope: expected one of"),
    ({"event_batches": 6}, r"event_batches: expected 1 to delta_t \(5\), got 6"), ({"event_batches": 0}, "event_batches"),
    ({"storage": "coo"}, "storage: expected one of masked, csr"), ({"sparsity": 0.9995}, "leaves no weight in"),
    ({"prune_fraction": -0.1}, "prune_fraction"), ({"only": "nothing"}, "nothing to prune")])
def test_configurations_that_cannot_work_are_refused_and_leave_the_model(fields, message):
    net = small_convnet()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=message):
        sparsekern.GSE(net, optimizer, **({"total_steps": 60, "delta_t": 5} | fields))
    assert isinstance(net[0], nn.Conv2d) and not net[0]._forward_hooks and optimizer.param_groups[0]["params"][0] is net[0].weight


def test_masks_cannot_be_given_to_sparse_layers_and_rigl_is_masked_only():
    _, _, sparsifier = make_gse()
    with pytest.raises(ValueError, match="replace_topology"):
        sparsifier.set_masks("0.8", {})
    with pytest.raises(ValueError, match="unknown sub-net '0.9'; there are 0.8"), sparsifier.subnet("0.9"):
        pass
    with pytest.raises(ValueError, match="RigL ranks the gradient of every connection"):
        make("rigl", storage="csr")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_compiled_model_leaves_its_graph_in_the_steps_of_events_only():
    runs, graphs, counts = [], [], []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward
    for compiled in (False, True):
        net, opt, sparsifier = make_gse(distribution="grabo", dtype=torch.float64)
        model = torch.compile(net, backend=backend) if compiled else net
        for step in range(14):
            backward(model, step)
            sparsifier.step()
            opt.zero_grad()
            counts.append(len(graphs))
        runs.append((places(sparsifier), values(sparsifier)))
    assert all(torch.equal(a, b) for kind in (0, 1) for a, b in zip(runs[0][kind], runs[1][kind]))
    assert counts[14:18] == [1] * 4 and counts[18] > 1 and counts[19:] == [counts[18]] * 9


def test_a_forward_that_no_hook_saw_is_named():
    net, _, sparsifier = make_gse()
    train(net, sparsifier, range(4))
    for tap in sparsifier._taps:
        tap.open = False
    backward(net, 4)
    with pytest.raises(ValueError, match="the forward pass of 0.weight, 3.weight, 6.weight, 11.weight was not seen by its hook"):
        sparsifier.step()


def test_moves_that_touch_one_layer_only():
    _, _, sparsifier = make_gse(storage="masked")
    crow, col, _ = sparsifier.store.pattern(3)
    drop = torch.zeros(len(col), dtype=torch.bool)
    nothing = torch.zeros(0, dtype=torch.int32)
    drop[:2] = True
    assert sparsifier.store.move([None, None, None, Move(drop, nothing, nothing, nothing.bool(), nothing.float())]) == [0, 0, 0, 2]
    assert sparsifier.masks.counts("0.8")[3] == len(col) - 2
