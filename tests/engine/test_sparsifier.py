"""The Sparsifier around any training loop: what it may move, and the ways to run, stop, resume and leave it."""
import copy
import math

import pytest
import torch
from ast_gc_runs import SUBNETS, backward, make, one_thread, train  # noqa: F401

import sparsekern
from sparsekern.sparsity.patterns import kept
from sparsekern.testing import small_convnet, toy_batch

# What a step moves.


@pytest.mark.parametrize("optimizer, fields", [("sgd", {}), ("sgd", {"gc_mode": "global"}), ("sgd", {"gc": False, "metrics": False}),
                                               ("adam", {}), ("adamw", {"nested": True})])
def test_what_a_sub_net_does_not_own_keeps_its_bits(optimizer, fields):
    net, optimizer, sparsifier = make(optimizer, **fields)

    def shaped(weight):
        state = optimizer.state.get(weight, {})
        return {k: v.clone() for k, v in state.items() if isinstance(v, torch.Tensor) and v.shape == weight.shape}
    for step in range(45):
        weights, states = [w.detach().clone() for w in sparsifier.weights], [shaped(w) for w in sparsifier.weights]
        banks = [{k: v.clone() for k, v in bank.items()} for bank in sparsifier.norms.banks]
        active = sparsifier.active
        train(net, sparsifier, [step])
        for weight, before, state, mask in zip(sparsifier.weights, weights, states, sparsifier.masks[active]):
            assert torch.equal(weight[~mask], before[~mask])
            assert not torch.equal(weight[mask], before[mask])
            for key, value in shaped(weight).items():
                assert torch.equal(value[~mask], state[key][~mask] if key in state else torch.zeros_like(value)[~mask])
        for number, (bank, before) in enumerate(zip(sparsifier.norms.banks, banks)):
            same = [torch.equal(bank[key], before[key]) for key in bank]
            assert all(same) if number != step % 3 else not any(same)


def test_leaky_updates_move_hidden_weights_by_momentum_and_decay():
    net, _, sparsifier = make(leaky=True)
    train(net, sparsifier, range(40))
    weights, active = [w.detach().clone() for w in sparsifier.weights], sparsifier.active
    train(net, sparsifier, [40])
    assert all((w[~m] != b[~m]).all() for w, b, m in zip(sparsifier.weights, weights, sparsifier.masks[active]))


def test_a_scheduler_and_max_norm_act_as_on_the_optimizer():
    net, optimizer, sparsifier = make(sparsity=[0.0], total_steps=30)
    torch.manual_seed(1)
    dense = small_convnet()
    plain = torch.optim.SGD(dense.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3, nesterov=True)
    schedulers = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 12) for o in (optimizer, plain)]
    for step in range(12):
        train(net, sparsifier, [step], max_norm=0.3)
        backward(dense, step)
        torch.nn.utils.clip_grad_norm_(dense.parameters(), 0.3)
        plain.step()
        plain.zero_grad()
        for scheduler in schedulers:
            scheduler.step()
    for a, b in zip(net.parameters(), dense.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_max_norm_clips_what_is_applied_after_correction_and_masking():
    net, _, sparsifier = make("plain", lr=1.0)
    train(net, sparsifier, range(12))
    for step in range(12, 24):
        before = [p.detach().clone() for group in sparsifier.optimizer.param_groups for p in group["params"]]
        train(net, sparsifier, [step], max_norm=0.01)
        after = [p.detach() for group in sparsifier.optimizer.param_groups for p in group["params"]]
        assert torch.stack([(a - b).norm() for a, b in zip(after, before)]).norm() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("gc_mode", ["layer", "global"])
def test_several_param_groups_are_one_model(gc_mode):
    results = []
    for split in (False, True):
        torch.manual_seed(1)
        net = small_convnet()
        params = list(net.parameters())
        groups = [{"params": params[:6]}, {"params": params[6:]}] if split else params
        optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=1e-3)
        sparsifier = sparsekern.AST_GC(net, optimizer, sparsity=SUBNETS, total_steps=60, gc_mode=gc_mode)
        train(net, sparsifier, range(20))
        results.append((params, sparsifier.metrics()))
    for a, b in zip(*[params for params, _ in results]):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert results[0][1]["projection"] == results[1][1]["projection"]


# Ways to run it.

@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_hook_equals_step(optimizer):
    nets = []
    for hooked in (False, True):
        net, opt, sparsifier = make(optimizer, dtype=torch.float64)
        if hooked:
            sparsifier.hook()
        for step in range(30):
            backward(net, step)
            opt.step() if hooked else sparsifier.step()
            opt.zero_grad(set_to_none=not hooked)                       # zeros left in other sub-nets' banks must not move them
        nets.append((list(net.parameters()), sparsifier))
    for a, b in zip(nets[0][0], nets[1][0]):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    for name in nets[0][1].subnets:
        assert all(torch.equal(a, b) for a, b in zip(nets[0][1].masks[name], nets[1][1].masks[name]))
    with pytest.raises(ValueError, match="call optimizer.step"):
        nets[1][1].step()


def test_hook_with_a_closure_corrects_the_gradients_that_the_closure_makes():
    results = []
    for closure in (False, True):
        net, opt, sparsifier = make()
        sparsifier.hook()
        for step in range(30):
            def gradients(net=net, opt=opt, step=step):
                opt.zero_grad()
                return backward(net, step)
            opt.step(gradients) if closure else (gradients(), opt.step())
        results.append((list(net.parameters()), sparsifier.masks.packed()))
    assert all(torch.equal(a, b) for a, b in zip(results[0][0], results[1][0]))
    assert all(torch.equal(results[0][1][key], results[1][1][key]) for key in results[0][1])


def test_gradients_in_shared_storage_are_copied_for_the_next_comparison():
    """Buckets of DistributedDataParallel are overwritten by the next backward pass."""
    results = []
    for shared in (False, True):
        net, _, sparsifier = make()
        bucket = torch.zeros(sum(p.numel() for p in net.parameters()) + 100)
        for step in range(20):
            backward(net, step)
            start = 0
            for param in net.parameters() if shared else ():
                view = bucket[start:start + param.numel()].view_as(param)
                param.grad, start = view.copy_(param.grad), start + param.numel()
            sparsifier.step()
        results.append((list(net.parameters()), sparsifier.metrics()["projection"]))
    assert all(torch.equal(a, b) for a, b in zip(results[0][0], results[1][0])) and results[0][1] == results[1][1]


def test_momentum_is_where_torch_keeps_it_also_after_the_state_was_replaced():
    net, opt, sparsifier = make()
    train(net, sparsifier, range(4))
    held = opt.state[net[3].weight]["momentum_buffer"].clone()
    opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    train(net, sparsifier, [4])
    assert not torch.equal(opt.state[net[3].weight]["momentum_buffer"], held)
    opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))], "lr": 0.5, "momentum": 0.0})
    extra = opt.param_groups[-1]["params"][0]
    extra.grad = torch.ones(3)
    train(net, sparsifier, [5])
    torch.testing.assert_close(extra.detach(), torch.full((3,), 1 - 0.5 * (1 + 1e-3)))


def test_dampening_takes_the_optimizers_own_step():
    torch.manual_seed(1)
    net, dense = small_convnet(), None
    dense = copy.deepcopy(net)
    opt, plain = (torch.optim.SGD(n.parameters(), lr=0.05, momentum=0.9, dampening=0.5) for n in (net, dense))
    sparsifier = sparsekern.AST_GC(net, opt, sparsity=[0.0], total_steps=30)
    for step in range(5):
        train(net, sparsifier, [step])
        backward(dense, step)
        plain.step()
        plain.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), dense.parameters()))


def test_channels_last_is_trained_as_it_is():
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        net, _, sparsifier = make(net=small_convnet().to(memory_format=layout), dtype=torch.float64)
        assert all(m.stride() == w.stride() for m, w in zip(sparsifier.masks["0.5"], sparsifier.weights))
        train(net, sparsifier, range(45))
        results.append((list(net.parameters()), sparsifier.state_dict()["tensors"]))
    for a, b in zip(results[0][0], results[1][0]):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    assert all(torch.equal(results[0][1][key], results[1][1][key]) for key in results[0][1] if key.startswith("mask/"))


def test_a_compiled_model_follows_the_sub_nets_without_new_graphs():
    weights, graphs = [], []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward
    for compiled in (False, True):
        net, opt, sparsifier = make(initial_sparsity=0.5)
        model = torch.compile(net, backend=backend, fullgraph=True) if compiled else net
        for step in range(20):
            backward(model, step)
            sparsifier.step()
            if step == 8:
                early = len(graphs)
        weights.append([p.detach().clone() for group in opt.param_groups for p in group["params"]])
    assert len(graphs) == early > 0
    with sparsifier.subnet("0.8"):
        net.eval()
        torch.testing.assert_close(model(toy_batch(0)[0]), net(toy_batch(0)[0]))
    for a, b in zip(*weights):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_frozen_weights_and_unused_layers_are_left_alone():
    net, _, sparsifier = make()
    net[6].weight.requires_grad_(False)
    before = net[6].weight.clone()
    train(net, sparsifier, range(60))
    assert torch.equal(net[6].weight, before)
    assert [row["nnz"] for row in sparsifier.summary()] == [kept(sparsifier.masks.numel, s) for s in SUBNETS]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_an_overflow_under_a_gradient_scaler_changes_nothing_but_the_rotation(optimizer):
    net, opt, sparsifier = make(optimizer, delta_t=6, offset=0, prune_end=30)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** 10)
    for step in range(30):
        event = sparsifier.event_due(step)
        before = copy.deepcopy((net.state_dict(), opt.state_dict(), [[m.clone() for m in sparsifier.masks[n]] for n in sparsifier.subnets]))
        bad = step in (6, 10, 16)                                       # 6 is an event of the first sub-net
        backward(net, step, scaler, math.inf if bad else 1.0)
        sparsifier.step(scaler=scaler)
        scaler.update()
        opt.zero_grad()
        if bad:
            with sparsifier.subnet(str(SUBNETS[step % 3])):
                weights = {k: v for k, v in net.state_dict().items() if "running" not in k and "num_batches" not in k}
                assert all(torch.equal(v, before[0][k]) for k, v in weights.items())
            assert all(torch.equal(a, b) for name, masks in zip(sparsifier.subnets, before[2])
                       for a, b in zip(sparsifier.masks[name], masks))
            for index, state in opt.state_dict()["state"].items():
                assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(before[1]["state"][index][k])) for k, v in state.items())
            assert event == (step == 6) and sparsifier.steps == step + 1
    assert [r["step"] for r in sparsifier.history[:4]] == [7, 8, 9, 12]     # the skipped event of sub-net 0 came three steps later
    assert scaler.get_scale() == 2.0 ** 7


def test_scaled_and_unscaled_training_agree():
    results = []
    for scale in (None, 2.0 ** 12):
        net, opt, sparsifier = make(dtype=torch.float64)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10 ** 6) if scale else None
        for step in range(20):
            backward(net, step, scaler)
            sparsifier.step(scaler=scaler)
            if scaler:
                scaler.update()
            opt.zero_grad()
        results.append(list(net.parameters()))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("stop", [1, 12, 13, 20, 44])
@pytest.mark.parametrize("sparsifier_first", [True, False])
def test_a_resumed_run_is_bit_for_bit_the_unbroken_one(optimizer, stop, sparsifier_first):
    net, opt, sparsifier = make(optimizer)
    train(net, sparsifier, range(stop))
    saved = copy.deepcopy((net.state_dict(), opt.state_dict(), sparsifier.state_dict()))
    losses = train(net, sparsifier, range(stop, 50))
    other, other_opt, other_sparsifier = make(optimizer)
    train(other, other_sparsifier, range(2))                            # whatever is there is replaced
    if sparsifier_first:
        other_sparsifier.load_state_dict(saved[2])
    other.load_state_dict(saved[0])
    other_opt.load_state_dict(saved[1])
    if not sparsifier_first:
        other_sparsifier.load_state_dict(saved[2])
    assert train(other, other_sparsifier, range(stop, 50)) == losses
    a, b = sparsifier.state_dict(), other_sparsifier.state_dict()
    assert a["meta"] == b["meta"] and a["tensors"].keys() == b["tensors"].keys()
    for key, value in a["tensors"].items():
        assert torch.equal(value.nan_to_num(-1), b["tensors"][key].nan_to_num(-1)), key
    assert all(torch.equal(x, y) for x, y in zip(net.state_dict().values(), other.state_dict().values()))
    for x, y in zip(opt.state_dict()["state"].values(), other_opt.state_dict()["state"].values()):
        assert all(torch.equal(torch.as_tensor(x[key]), torch.as_tensor(y[key])) for key in x)


def test_subnet_shows_one_and_goes_back():
    net, _, sparsifier = make()
    train(net, sparsifier, range(50))
    net.eval()
    x = toy_batch(0)[0]
    shown, active = net(x), sparsifier.active
    outputs = {}
    for name in sparsifier.subnets:
        with sparsifier.subnet(name):
            outputs[name] = net(x)
            assert sparsifier.active == name
            with pytest.raises(ValueError, match="train outside of it"):
                sparsifier.step()
    assert sparsifier.active == active and torch.equal(net(x), shown) and torch.equal(outputs[active], shown)
    assert not torch.equal(outputs["0.5"], outputs["0.9"])
    with pytest.raises(ValueError, match="unknown sub-net '0.7'; there are 0.5, 0.8, 0.9"), sparsifier.subnet("0.7"):
        pass


def test_masks_made_elsewhere_are_followed_at_once():
    net, _, sparsifier = make()
    train(net, sparsifier, range(2))
    net.eval()
    x, mask = toy_batch(0)[0], torch.rand(16, 8, 3, 3) < 0.3
    before = net(x)
    sparsifier.set_masks(sparsifier.active, {"3.weight": mask})
    assert sparsifier.masks.counts(sparsifier.active)[0] == int(mask.sum()) and not torch.equal(net(x), before)
    weight = net[3].weight.detach().clone()
    train(net, sparsifier, [2])
    assert torch.equal(net[3].weight[~mask], weight[~mask]) and not torch.equal(net[3].weight[mask], weight[mask])
    with pytest.raises(ValueError, match=r"3.weight: expected a bool mask of shape \[16, 8, 3, 3\], got torch.bool \[2\]"):
        sparsifier.set_masks("0.5", {"3.weight": torch.ones(2, dtype=torch.bool)})


def test_remove_gives_the_plain_model_back():
    net, opt, sparsifier = make()
    keys, count = list(net.state_dict()), len(list(net.parameters()))
    train(net, sparsifier, range(50))
    twin = copy.deepcopy((net, opt, sparsifier))
    x = toy_batch(0)[0]
    net.eval()
    with sparsifier.subnet("0.8"):
        expected = net(x)
    assert sparsifier.remove("0.8") is net
    torch.testing.assert_close(net(x), expected)
    assert sum(int((net.get_parameter(layer.name) != 0).sum()) for layer in sparsifier.layers) <= sparsifier.masks.nnz("0.8")
    assert list(net.state_dict()) == keys and sum(len(group["params"]) for group in opt.param_groups) == count
    assert not any("forward" in vars(module) for module in net.modules())
    with pytest.raises(ValueError, match="was removed"):
        sparsifier.step()
    net, _, sparsifier = twin
    weights = [w.detach().clone() for w in sparsifier.weights]
    sparsifier.remove()
    assert all(torch.equal(a, b) for a, b in zip(weights, sparsifier.weights)) and net[4].weight is sparsifier.norms.banks[0]["4.weight"]


# Misuse.

def test_an_optimizer_of_another_model_is_refused():
    net = small_convnet()
    with pytest.raises(ValueError, match="does not own 3.weight, 6.weight, 11.weight, 4.weight"):
        sparsekern.AST_GC(net, torch.optim.SGD(small_convnet().parameters(), lr=0.1), total_steps=60)


def test_a_second_sparsifier_is_refused_until_the_first_is_removed():
    net, opt, sparsifier = make()
    with pytest.raises(ValueError, match="a sparsifier already"):
        sparsekern.AST_GC(net, opt, total_steps=60)
    sparsifier.remove()
    train(net, sparsekern.AST_GC(net, opt, total_steps=60), range(3))


def test_a_state_of_something_else_is_refused_whole():
    net, _, sparsifier = make()
    train(net, sparsifier, range(20))
    state = sparsifier.state_dict()

    def spoiled(change):
        bad = copy.deepcopy(state)
        change(bad["tensors"], bad["meta"])
        return bad
    cases = [
        (lambda t, m: m.update(algorithm="IEE"), "algorithm: here 'AST_GC', in the saved state 'IEE'"),
        (lambda t, m: m.update(format=2), "format"),
        (lambda t, m: m["config"].update(delta_t=99), "config: delta_t: here 3, in the saved state 99"),
        (lambda t, m: m["layers"].pop("6.weight"), "layers: 6.weight"),
        (lambda t, m: m["layers"].update({"6.weight": [1]}), "layers: 6.weight"),
        (lambda t, m: m.pop("steps"), "steps: expected int"),
        (lambda t, m: m["extra"].pop("events"), "extra"),
        (lambda t, m: t.pop("mask/0.8/6.weight"), "mask/0.8/6.weight is missing"),
        (lambda t, m: t.update(more=torch.zeros(1)), "more belongs to no layer"),
        (lambda t, m: t.update({"norm/0.8/4.bias": torch.zeros(3)}), r"norm/0.8/4.bias: expected torch.float32 \[16\]"),
        (lambda t, m: t["mask/0.8/6.weight"].bitwise_xor_(1), "kept weights per layer in the masks of 0.8"),
    ]
    train(net, sparsifier, range(20, 30))
    before = sparsifier.state_dict()
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            sparsifier.load_state_dict(spoiled(change))
        now = sparsifier.state_dict()
        assert now["meta"] == before["meta"]
        assert all(torch.equal(v.nan_to_num(-1), now["tensors"][k].nan_to_num(-1)) for k, v in before["tensors"].items())
    with pytest.raises(ValueError, match="expected {'tensors'"):
        sparsifier.load_state_dict({})
    sparsifier.load_state_dict(state)
    assert sparsifier.steps == 20
