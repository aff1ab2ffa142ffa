"""IEE in any loop: resuming, hooks, overflows, evaluation amid a cycle; its numbers, and its refusals."""
import math

import pytest
import torch
from dynamic_runs import OPTIMIZERS, accuracy, assert_same_state, backward, make, one_thread, resumed, state, train  # noqa: F401
from iee_runs import STEPS, bits, run
from torch import nn

from sparsekern.testing import small_convnet, toy_batch

# Any loop.

@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("stop", [1, 3, 4, 5, 7, 8, 9, 14, 47])             # in every phase, at its borders, after the cycles
def test_a_resumed_run_is_bit_for_bit_the_unbroken_one(optimizer, stop):
    (losses, one), (again, other) = resumed("iee", optimizer, stop, 52, sparsifier_first=stop % 2 == 0, **STEPS)
    assert losses == again
    assert_same_state(one, other)


@pytest.mark.parametrize("fields", [{"score": "mean_magnitude"}, {"allocation": "nonuniform", "update_schedule": "exponential"},
                                    {"growth": "random"}, {"freeze": False, "zero_init": True}])
@pytest.mark.parametrize("stop", [2, 7, 11])
def test_options_resume_exactly_too(fields, stop):
    (losses, one), (again, other) = resumed("iee", "sgd", stop, 30, **STEPS | fields)
    assert losses == again
    assert_same_state(one, other)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_hook_equals_step(optimizer):
    results = []
    for hooked in (False, True):
        net, opt, s = run(optimizer, dtype=torch.float64)
        if hooked:
            s.hook()
        for step in range(30):
            backward(net, step)
            opt.step() if hooked else s.step()
            opt.zero_grad(set_to_none=not hooked)
        results.append((list(net.parameters()), list(net.buffers()), s.masks[s.net]))
    for part in range(2):
        for a, b in zip(results[0][part], results[1][part]):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    assert all(torch.equal(a, b) for a, b in zip(results[0][2], results[1][2]))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_an_overflow_moves_nothing_but_the_phases_go_on(optimizer):
    net, opt, s = run(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** 10)
    for step in range(28):
        bad = step in (2, 4, 8, 14)                                             # the last steps of H, J and Q, one inside Q
        before = bits(net, opt, s)
        backward(net, step, scaler, math.inf if bad else 1.0)
        s.step(scaler=scaler)
        scaler.update()
        opt.zero_grad()
        if bad:
            now = bits(net, opt, s)
            assert all(torch.equal(a, b) for part in ("weights", "others") for a, b in zip(now[part], before[part]))
            assert s.steps == step + 1
    assert [r["step"] for r in s.history] == [2, 8, 11, 17, 20, 26] and s.masks.nnz(s.net) == sum(s.form.budget)


def test_other_grads_are_taken_in_q_and_max_norm_clips_what_is_applied():
    net, opt, s = make("iee", "plain", **STEPS)
    train(net, s, range(5))
    before = [w.detach().clone() for w in s.weights]
    backward(net, 5)
    s.step(max_norm=0.01)
    assert all(p.grad is None for p in net.parameters())
    moved = torch.stack([(a - b).norm() for a, b in zip(before, (w.detach() for w in s.weights))]).norm()
    assert moved == pytest.approx(0.01 * 0.05, rel=1e-3)


def test_a_sub_net_is_evaluated_inside_q_and_leaves_no_trace():
    net, opt, s = run()
    train(net, s, range(7))
    assert s.phase == "explore" and s.products == ("all", "all", "~0.8") and s.active == s.net
    before, x = state(net, opt, s), toy_batch(0)[0]
    with s.subnet(s.net):
        net.eval()
        shown = net(x)
        net.train()
        assert all(m.track_running_stats for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    assert_same_state(before, state(net, opt, s))
    assert not any(m.track_running_stats for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    s.remove(s.net)
    assert all(m.track_running_stats for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    net.eval()
    torch.testing.assert_close(net(x), shown)
    assert sum(int((w != 0).sum()) for w in s.weights) == s.masks.nnz(s.net)


def test_sparsity_zero_is_dense_training():
    net, _, s = run(sparsity=0.0)
    torch.manual_seed(1)
    dense = small_convnet()
    plain = OPTIMIZERS["sgd"](dense.parameters())
    for step in range(20):
        train(net, s, [step])
        backward(dense, step)
        plain.step()
        plain.zero_grad()
    assert s.cycles == 0 and not s.history
    for a, b in zip(net.parameters(), dense.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_it_learns():
    net, _, s = run(total_steps=90)
    train(net, s, range(90))
    with s.subnet(s.net):
        assert accuracy(net) > 0.9


# Numbers.

def test_survival_and_overlap_are_those_of_the_masks():
    net, _, s = run(sparsity=0.6)
    seen: dict[str, list] = {"prune": [], "grow": []}
    grown = None
    for step in range(45):
        before = [m.clone() for m in s.masks[s.net]]
        events = len(s.history)
        train(net, s, [step])
        if len(s.history) == events:
            continue
        record, now = s.history[-1], [m.clone() for m in s.masks[s.net]]
        past = seen[record["kind"]]
        if past:
            both, either = (sum(int(op(a, b).sum()) for a, b in zip(past[-1], now)) for op in (torch.logical_and, torch.logical_or))
            assert record["iou"] == both / either
        past.append(now)
        if record["kind"] == "grow":
            grown = [a & ~b for a, b in zip(now, before)]
            assert record["grown"] == [int(g.sum()) for g in grown]
        elif grown is not None:
            left = sum(int((g & m).sum()) for g, m in zip(grown, now))
            assert record["survival"] == left / sum(int(g.sum()) for g in grown)
        assert record["flips"] == [int((a ^ b).sum()) for a, b in zip(before, now)]
    assert len(seen["grow"]) == 5


def test_training_flops_by_the_papers_formula_and_by_the_products():
    _, _, s = make("iee", total_steps=80, h_steps=5, j_steps=5, q_steps=5, end=60)
    flops = s.metrics()["training_flops"]
    assert flops["paper"] == {"sparse": pytest.approx(11 / 4), "dense": pytest.approx(1 / 4)}
    assert flops["honest"] == {"sparse": pytest.approx(3 - 0.75 * 4 / 3), "dense": pytest.approx(3 / 4)}
    _, _, s = make("iee", total_steps=80, h_steps=5, j_steps=5, q_steps=5, end=60, freeze=False)
    assert s.metrics()["training_flops"]["honest"] == {"sparse": pytest.approx(2.25), "dense": pytest.approx(3 / 4)}


# Misuse.

@pytest.mark.parametrize("fields, words", [
    ({"pattern": "blocks"}, "pattern: expected one of unstructured.*got 'blocks'"),
    ({"allocation": "global"}, "allocation: expected one of er, erk, "),
    ({"allocation": "nonuniform", "first_allocation": "nonuniform"}, "first_allocation: expected one of"),
    ({"start": "zeros"}, "start: expected one of random, magnitude"), ({"growth": "gradient"}, "growth: expected one of score, random"),
    ({"score": "taylor"}, "score: expected one of magnitude, mean_magnitude, got 'taylor'"),
    ({"update_schedule": "cubic"}, "update_schedule: expected one of cosine, exponential"),
    ({"update_budget": 0.0}, r"update_budget, update_budget_end: expected shares in \(0, 1\], got 0.0"), ({"update_budget": 1.5}, "got 1.5"),
    ({"update_budget_end": float("nan")}, "got 0.3 and nan"), ({"leaky": True}, "leaky: IEE explores from the values"),
    ({"h_steps": 0}, "h_steps, j_steps, q_steps: expected at least 1, 0 and 1, got 0, 2, 4"), ({"q_steps": 0}, "got 3, 2, 0"),
    ({"j_steps": -1}, "got 3, -1, 4"), ({"end": 61}, r"end: expected a step from 0 to total_steps \(60\), got 61"),
    ({"end": 8}, r"end: no cycle of 3 \+ 2 \+ 4 steps fits before step 8"), ({"h_steps": 100}, "no cycle of 100"),
    ({"sparsity": (0.8, 0.9)}, "trains one net"), ({"sparsity": 90}, "did you mean 0.9"),
    ({"sparsity": 0.999, "allocation": "uniform"}, "leaves no weight in"),
    ({"first_allocation": "er"}, "first_allocation: 'er' has no effect without allocation='nonuniform'"),
    ({"update_budget_end": 0.01}, "update_budget_end: 0.01 has no effect without update_schedule='exponential'"),
])
def test_settings_that_cannot_work(fields, words):
    with pytest.raises(ValueError, match=words):
        run(**fields)


def test_nan_in_the_weights_stops_an_event_with_the_masks_as_they_were():
    net, _, s = run()
    train(net, s, range(2))
    masks = [m.clone() for m in s.masks[s.net]]
    with torch.no_grad():
        net[6].weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="mask event at step 2: NaN in the weights of .*6.weight"):
        train(net, s, [2])
    assert all(torch.equal(a, b) for a, b in zip(masks, s.masks[s.net])) and not s.history
