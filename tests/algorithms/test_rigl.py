"""RigL against algorithm 1 of its paper. What it shares with SET (times, resume, refusals) is tested there."""
import math

import pytest
import torch
from dynamic_runs import backward, make, one_thread, train  # noqa: F401


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_an_event_grows_where_the_dense_gradient_is_largest(optimizer):
    net, opt, sparsifier = make("rigl", optimizer, delta_t=5, end=40, event_skips_update=True)
    train(net, sparsifier, range(4))
    assert all((w.grad is None) for w in sparsifier.weights)
    weights, old = [w.detach().clone() for w in sparsifier.weights], [m.clone() for m in sparsifier.masks[sparsifier.net]]
    backward(net, 4)
    grads = [w.grad.clone() for w in sparsifier.weights]
    assert all((g[~m] != 0).any() for g, m in zip(grads, old))                  # dense on event steps
    sparsifier.step()
    share = 0.15 * (1 + math.cos(math.pi * 4 / 40))
    for w, now, g, before, after in zip(weights, sparsifier.weights, grads, old, sparsifier.masks[sparsifier.net]):
        count = int(share * int(before.sum()))
        staying = before.flatten().clone()
        staying[w.abs().masked_fill(~before, math.inf).flatten().argsort(stable=True)[:count]] = False
        candidates = g.abs().flatten().masked_fill(staying, -1)                # what was dropped may come back
        staying[candidates.argsort(descending=True, stable=True)[:count]] = True
        assert count > 0 and torch.equal(after.flatten(), staying)
        moved = before ^ after
        assert (now[moved] == 0).all() and torch.equal(now[~moved], w[~moved])
        assert all((v[moved] == 0).all() for v in opt.state[now].values() if v.shape == now.shape)


def test_gradients_are_sparse_between_events():
    net, _, sparsifier = make("rigl", delta_t=5)
    for step in range(10):
        backward(net, step)
        hidden = [bool((w.grad[~m] != 0).any()) for w, m in zip(sparsifier.weights, sparsifier.masks[sparsifier.net])]
        assert hidden == [step % 5 == 4] * 4
        sparsifier.step()
        sparsifier.optimizer.zero_grad()


def test_survival_is_the_share_of_what_grew_that_the_next_event_does_not_drop():
    net, _, s = make("rigl", delta_t=4, end=40)
    grown = None
    for step in range(24):
        old, weights = [m.clone() for m in s.masks[s.net]], None
        backward(net, step)
        if s.event_due(step):
            weights = [w.detach().clone() for w in s.weights]
        s.step()
        s.optimizer.zero_grad()
        if weights is None:
            continue
        record, kept = s.history[-1], 0
        if grown is None:
            assert record["survival"] is None
        else:
            for w, m, g in zip(weights, old, grown):
                dropped = w.abs().masked_fill(~m, math.inf).flatten().argsort(stable=True)[:int(record["fraction"] * int(m.sum()))]
                kept += int(g.sum()) - int(g.flatten()[dropped].sum())
            assert record["survival"] == kept / sum(int(g.sum()) for g in grown)
        grown = [now & ~m for now, m in zip(s.masks[s.net], old)]
    assert s.history[-1]["event"] == 6


def test_a_frozen_layer_keeps_its_connections():
    net, _, sparsifier = make("rigl", delta_t=5)
    net[6].weight.requires_grad_(False)
    before = sparsifier.masks[sparsifier.net][2].clone()
    train(net, sparsifier, range(12))
    assert torch.equal(before, sparsifier.masks[sparsifier.net][2]) and sparsifier.history[0]["flips"][2] == 0
    assert sparsifier.history[0]["flips"][3] > 0
