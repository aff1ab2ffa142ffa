"""IEE against its procedure: phases, what moves in each of them and what does not, budgets, growth and ablations."""
import copy
import math

import pytest
import torch
from dynamic_runs import backward, make, one_thread, train  # noqa: F401
from iee_runs import bits, run
from torch import nn

from sparsekern import IEE
from sparsekern.sparsity.allocation import allocate
from sparsekern.sparsity.optim_state import shaped_state
from sparsekern.sparsity.patterns import kept
from sparsekern.testing import small_convnet

# When what happens.

def test_the_timeline_is_that_of_the_pseudo_code():
    net, _, s = run()
    for step in range(60):
        i = step + 1
        r, running = (i - 1) % 9, i <= 45
        assert s.phase == ("estimate" if r < 3 else "improve" if r < 5 else "explore") * running + "train" * (not running)
        events = len(s.history)
        train(net, s, [step])
        kinds = [record["kind"] for record in s.history[events:]]
        assert kinds == ["prune"] * (running and r == 2) + ["grow"] * (running and r == 8)
    assert [record["step"] for record in s.history] == [start + offset for start in range(0, 45, 9) for offset in (2, 8)]
    assert s.masks.nnz(s.net) == kept(s.masks.numel, 0.8)


@pytest.mark.parametrize("total, wanted", [(4, 1), (60, 1), (480, 15), (6400, 150), (100_000, 150)])
def test_default_phases_are_a_share_of_the_run(total, wanted):
    _, _, s = make("iee", total_steps=total)
    c = s.config
    assert (c.h_steps, c.j_steps, c.q_steps) == (wanted,) * 3 and c.end == int(0.75 * total) and s.cycles == c.end // (3 * wanted) >= 1


# What moves: the phase table, bit for bit.

@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("fields", [{}, {"allocation": "nonuniform"}, {"score": "mean_magnitude", "allocation": "uniform"}])
def test_every_step_moves_what_its_phase_says_and_nothing_else(optimizer, fields):
    net, opt, s = run(optimizer, **fields)
    for step in range(50):
        phase, before = s.phase, bits(net, opt, s)
        train(net, s, [step])
        now = bits(net, opt, s)
        for w, was, state_now, state_was, active in zip(now["weights"], before["weights"], now["shaped"], before["shaped"], before["mask"]):
            moving = ~active if phase == "explore" else active
            assert torch.equal(w[~moving], was[~moving])
            assert torch.equal(w[moving] != was[moving], torch.ones_like(w[moving], dtype=torch.bool))
            for key, value in state_now.items():
                still = state_was.get(key, torch.zeros_like(value))
                if phase == "explore":
                    assert torch.equal(value[active], still[active])            # neither decayed nor applied
                elif step != 2 + 9 * (step // 9):                               # not the last step of H, which zeroes what it prunes
                    assert (value[~active] == 0).all() and (value[active] != 0).any()
        frozen = phase == "explore"
        assert all(torch.equal(a, b) == frozen for a, b in zip(now["others"], before["others"]))
        assert all(torch.equal(a, b) == frozen for a, b in zip(now["buffers"], before["buffers"]))
        if step:
            assert all(torch.equal(a[k], b[k]) == frozen for a, b in zip(now["states"], before["states"]) for k in a)
        # Momentum outside the active net exists in phase Q only, from 0 and up to its last step.
        for value, mask in ((v, m) for entry, m in zip(now["shaped"], now["mask"]) for v in entry.values()):
            inside_q = frozen and s.phase == "explore"
            assert (value[~mask] != 0).any() == (inside_q and not mask.all())


def test_momentum_starts_at_zero_on_entry_to_q_and_what_is_grown_has_none():
    net, opt, s = run()
    train(net, s, range(5))
    assert s.phase == "explore"
    mask = [m.clone() for m in s.masks[s.net]]
    assert all((opt.state[w]["momentum_buffer"][~m] == 0).all() for w, m in zip(s.weights, mask))
    backward(net, 5)
    grads, lr = [w.grad.clone() for w in s.weights], 0.05
    values = [w.detach().clone() for w in s.weights]
    assert all((g[m] == 0).all() for g, m in zip(grads, mask))                  # only what is explored has gradients
    s.step()
    for w, g, m, old in zip(s.weights, grads, mask, values):                    # Nesterov from v = 0: v = d, step d + 0.9 v
        decayed = g + 1e-3 * old
        torch.testing.assert_close(opt.state[w]["momentum_buffer"][~m], decayed[~m])
        torch.testing.assert_close(w.detach()[~m], (old - lr * 1.9 * decayed)[~m])
    opt.zero_grad()
    train(net, s, range(6, 9))
    grown = [now & ~m for now, m in zip(s.masks[s.net], mask)]
    assert sum(int(g.sum()) for g in grown) > 0
    for w, now, old in zip(s.weights, s.masks[s.net], mask):
        assert (opt.state[w]["momentum_buffer"][~old] == 0).all()
        assert (opt.state[w]["momentum_buffer"][now & old] != 0).any()


def test_pruned_weights_keep_their_last_value_and_grown_ones_their_explored_value():
    net, opt, s = run()
    for cycle in range(3):
        train(net, s, range(9 * cycle, 9 * cycle + 2))
        old = [m.clone() for m in s.masks[s.net]]
        train(net, s, [9 * cycle + 2])
        pruned = [m & ~now for m, now in zip(old, s.masks[s.net])]
        values = [w.detach().clone() for w in s.weights]
        assert all((w[p] != 0).all() for w, p in zip(values, pruned)) and sum(int(p.sum()) for p in pruned) > 0
        train(net, s, range(9 * cycle + 3, 9 * cycle + 5))
        assert all(torch.equal(w[~m], v[~m]) for w, v, m in zip(s.weights, values, s.masks[s.net]))
        train(net, s, range(9 * cycle + 5, 9 * cycle + 8))
        before = bits(net, opt, s)
        twin, twin_opt, twin_s = run(growth="random")          # the same last step, another choice: no value is the event's
        twin.load_state_dict(net.state_dict())
        twin_opt.load_state_dict(copy.deepcopy(opt.state_dict()))
        saved = s.state_dict()
        saved["meta"]["config"]["growth"] = "random"
        twin_s.load_state_dict(saved)
        train(net, s, [9 * cycle + 8])
        train(twin, twin_s, [9 * cycle + 8])
        assert all(torch.equal(a, b) for a, b in zip(s.weights, twin_s.weights))
        assert any(not torch.equal(a, b) for a, b in zip(s.masks[s.net], twin_s.masks[s.net]))
        assert all(not torch.equal(w, v) for w, v in zip(s.weights, before["weights"]))


@pytest.mark.parametrize("allocation", ["erk", "nonuniform"])
def test_with_one_step_of_exploration_growth_ranks_the_last_value_plus_one_step(allocation):
    """Appendix 1 of the paper: a prior from the weights, and a correction by the gradient under the newly pruned net."""
    net, opt, s = make("iee", "plain", h_steps=3, j_steps=1, q_steps=1, allocation=allocation)
    train(net, s, range(4))
    plain = small_convnet()
    plain.load_state_dict(net.state_dict())
    assert backward(plain, 4) == backward(net, 4)                               # the forward pass of Q is dense
    wanted = [w - 0.05 * plain.get_parameter(layer.name).grad for layer, w in zip(s.layers, (w.detach() for w in s.weights))]
    mask, values = [m.clone() for m in s.masks[s.net]], [w.detach().clone() for w in s.weights]
    s.step()
    candidates = [v.abs().masked_fill(m, -1).flatten() for v, m in zip(wanted, mask)]
    counts = [int((now & ~m).sum()) for now, m in zip(s.masks[s.net], mask)]
    cat = torch.cat(candidates)
    globally = torch.zeros_like(cat, dtype=torch.bool)
    globally[cat.argsort(descending=True, stable=True)[:sum(counts)]] = True
    pieces = globally.split([len(c) for c in candidates])
    for w, value, v, m, now, one, chosen in zip(s.weights, values, wanted, mask, s.masks[s.net], candidates, pieces):
        torch.testing.assert_close(w.detach()[~m], v[~m])
        assert torch.equal(w.detach()[m], value[m])
        if allocation == "erk":
            chosen = torch.zeros_like(one, dtype=torch.bool)
            chosen[one.argsort(descending=True, stable=True)[:int((now & ~m).sum())]] = True
        assert torch.equal((now & ~m).flatten(), chosen)


# Events.

def by_hand(**fields):
    """One linear layer whose weights only the test moves; half of its eight weights are kept."""
    net = nn.Sequential(nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[8.0, -1.0, 7.0, 2.0], [-6.0, 3.0, 5.0, 4.0]]))
    opt = torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9)
    return net, IEE(net, opt, sparsity=0.5, total_steps=8, start="magnitude", h_steps=1, j_steps=1, q_steps=1, update_budget=0.5, **fields)


def idle(net, s, steps):
    for _ in range(steps):
        net(torch.ones(1, 4)).sum().backward()
        s.step()
        s.optimizer.zero_grad()
    return s.masks[s.net][0].int().tolist()


@pytest.mark.parametrize("allocation", ["erk", "uniform", "nonuniform"])
def test_a_cycle_worked_by_hand(allocation):
    net, s = by_hand(allocation=allocation)
    assert idle(net, s, 0) == [[1, 0, 1, 0], [1, 0, 1, 0]]
    assert idle(net, s, 1) == [[1, 0, 1, 0], [0, 0, 0, 0]]                      # half of 4 go: 5 and -6
    assert idle(net, s, 1) == [[1, 0, 1, 0], [0, 0, 0, 0]]
    with torch.no_grad():
        net[0].weight[0, 1] = -9.0                                              # as if it had been explored
    assert idle(net, s, 1) == [[1, 1, 1, 0], [1, 0, 0, 0]]                      # -9 comes and -6 comes back
    assert net[0].weight[0, 1] == -9.0
    first, second = s.history
    assert first["fraction"] == second["fraction"] == 0.5 and first["nnz"] == [2] and second["nnz"] == [4]
    assert first["flips"] == [2] and second["flips"] == [2] and second["grown"] == [2]
    assert first["iou"] is first["survival"] is second["iou"] is None
    assert idle(net, s, 1) == [[1, 1, 1, 0], [0, 0, 0, 0]]                      # cosine: a quarter of 4; -6 goes
    assert s.history[-1]["fraction"] == pytest.approx(0.25) and s.history[-1]["survival"] == 0.5
    assert s.history[-1]["iou"] == pytest.approx(2 / 3)
    assert idle(net, s, 2) == [[1, 1, 1, 0], [1, 0, 0, 0]] and s.history[-1]["iou"] == 1.0


def test_ties_go_to_the_lowest_index():
    net, s = by_hand()
    with torch.no_grad():
        net[0].weight.fill_(3.0)
    assert idle(net, s, 1) == [[1, 0, 1, 0], [0, 0, 0, 0]]
    assert idle(net, s, 2) == [[1, 1, 1, 1], [0, 0, 0, 0]]


@pytest.mark.parametrize("allocation, first", [("erk", None), ("er", None), ("uniform", None), ("nonuniform", "erk"), ("nonuniform", "uniform")])
@pytest.mark.parametrize("schedule", ["cosine", "exponential"])
def test_budgets_are_exact_at_every_event(allocation, first, schedule):
    fields = {"allocation": allocation, "update_schedule": schedule} | ({"first_allocation": first} if first else {})
    net, _, s = run(sparsity=0.7, **fields)
    budget = allocate(first or allocation, [w.shape for w in s.weights], kept(s.masks.numel, 0.7))
    assert s.masks.counts(s.net) == budget
    for cycle in range(5):
        share = 0.3 / 2 * (1 + math.cos(math.pi * cycle / 5)) if schedule == "cosine" else 0.3 * (0.005 / 0.3) ** (cycle / 5)
        for steps, kind in ((3, "prune"), (6, "grow")):
            before = [m.clone() for m in s.masks[s.net]]
            train(net, s, range(s.steps, s.steps + steps))
            record, counts = s.history[-1], [int(m.sum()) for m in s.masks[s.net]]
            assert record["kind"] == kind and record["event"] == cycle + 1 and record["fraction"] == pytest.approx(share)
            assert counts == s.masks.counts(s.net) == record["nnz"] and min(counts) >= 1
            inside = zip(s.masks[s.net], before) if kind == "prune" else zip(before, s.masks[s.net])
            assert all(not (small & ~large).any() for small, large in inside)
            if allocation == "nonuniform":
                total = sum(budget)
                assert sum(counts) == total - (max(1, int(share * total)) if kind == "prune" else 0)
            else:
                fixed = [b == w.numel() for b, w in zip(budget, s.weights)]
                gone = [0 if full else min(b - 1, max(1, int(share * b))) for b, full in zip(budget, fixed)]
                assert counts == [b - g * (kind == "prune") for b, g in zip(budget, gone)]
    train(net, s, range(45, 60))
    assert len(s.history) == 10 and s.masks.nnz(s.net) == sum(budget)


def test_masks_made_elsewhere_return_to_the_budget_and_counts_stay_true():
    for step, keep in ((1, 0.02), (1, 0.9), (6, 0.02), (6, 0.9)):               # in phase H or Q, too few and too many
        net, _, s = run()
        train(net, s, range(step))
        s.set_masks(s.net, {layer.name: torch.rand_like(layer.param) < keep for layer in s.layers})
        for later in range(step, 27):
            train(net, s, [later])
            assert [int(m.sum()) for m in s.masks[s.net]] == s.masks.counts(s.net)
        assert s.masks.counts(s.net) == s.form.budget


def test_the_first_net_is_drawn_from_the_seed_and_keeps_the_models_values():
    torch.manual_seed(1)
    values = [p.clone() for p in small_convnet().parameters()]
    masks = []
    for seed in (0, 0, 1):
        net, _, s = run(seed=seed)
        assert all(torch.equal(p, v) for p, v in zip(net.parameters(), values))
        masks.append(torch.cat([m.flatten() for m in s.masks[s.net]]))
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    _, _, s = run(start="magnitude")
    assert all(w[m].abs().min() >= w[~m].abs().max() for w, m in zip(s.weights, s.masks[s.net]) if not m.all())
    assert len(s.layers) == 4 and len(run(skip_first=True)[2].layers) == 3


def test_a_layer_that_does_not_train_keeps_its_connections():
    net, _, s = run(allocation="uniform")
    net[6].weight.requires_grad_(False)
    mask, weight = s.masks[s.net][2].clone(), net[6].weight.clone()
    train(net, s, range(20))
    assert torch.equal(mask, s.masks[s.net][2]) and torch.equal(weight, net[6].weight) and s.history[0]["flips"][3] > 0


def test_the_mean_score_ranks_the_sum_over_the_phase():
    net, _, s = run(score="mean_magnitude", allocation="uniform", update_budget=0.6)
    sums = [torch.zeros_like(w) for w in s.weights]
    for step in range(3):
        sums = [a + w.detach().abs() for a, w in zip(sums, s.weights)]
        old = [m.clone() for m in s.masks[s.net]]
        train(net, s, [step])
    sums = [a + w.detach().abs() for a, w in zip(sums, s.weights)]
    for total, was, now in zip(sums, old, s.masks[s.net]):
        assert total[now].min() >= total[was & ~now].max()
    assert any((w[now].abs().min() < w[was & ~now].abs().max()) for w, was, now in zip(s.weights, old, s.masks[s.net]))


# Ablations.

@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_without_freezing_everything_moves_in_q(optimizer):
    net, opt, s = run(optimizer, freeze=False)
    train(net, s, range(5))
    for step in range(5, 9):
        assert s.phase == "explore"
        before = bits(net, opt, s)
        train(net, s, [step])
        now = bits(net, opt, s)
        for part in ("weights", "others", "buffers"):
            assert all(bool((a != b).all()) or part == "others" and not torch.equal(a, b) for a, b in zip(now[part], before[part]))
    assert all((v[~m] == 0).all() for w, m in zip(s.weights, before["mask"]) for v in shaped_state(opt, w).values())


def test_without_accuracy_improvement_there_is_no_j():
    net, _, s = run(accuracy_improvement=False)
    phases = []
    for step in range(8):
        phases.append(s.phase)
        train(net, s, [step])
    assert phases == ["estimate"] * 3 + ["explore"] * 4 + ["estimate"] and [r["step"] for r in s.history] == [2, 6]


def test_zero_init_starts_grown_weights_at_zero():
    for zero in (False, True):
        net, _, s = run(zero_init=zero)
        train(net, s, range(8))
        old = [m.clone() for m in s.masks[s.net]]
        train(net, s, [8])
        grown = [w.detach()[now & ~m] for w, m, now in zip(s.weights, old, s.masks[s.net])]
        rest = [w.detach()[~now] for w, now in zip(s.weights, s.masks[s.net]) if not now.all()]
        assert torch.cat(grown).numel() > 0 and bool((torch.cat(grown) == 0).all()) == zero and all((r != 0).all() for r in rest)


def test_random_growth_ignores_the_weights():
    chosen = []
    for scale in (1.0, 5.0):
        net, _, s = run(growth="random", seed=3)
        train(net, s, range(8))
        with torch.no_grad():
            for w, m in zip(s.weights, s.masks[s.net]):
                w[~m] *= torch.rand_like(w[~m]) * scale
        old = [m.clone() for m in s.masks[s.net]]
        train(net, s, [8])
        chosen.append([now & ~m for m, now in zip(old, s.masks[s.net])])
    assert all(torch.equal(a, b) for a, b in zip(*chosen)) and sum(int(c.sum()) for c in chosen[0]) > 0
