"""Phases of the engine: frozen views, the rest of a mask, the end of a phase, and norms whose statistics stand still."""
import pytest
import torch
from ast_gc_runs import backward, make, one_thread, train  # noqa: F401
from torch import nn

from sparsekern.nn.switchable_norm import HeldStatistics
from sparsekern.sparsity import ALL, MaskSet, Phase, Sparsifier, Timeline, Unstructured, View, rest
from sparsekern.testing import small_convnet, toy_batch


class Alternating(Sparsifier):
    """Half of every layer for two steps, the other half, frozen, for one."""

    def make_patterns(self):
        return {"half": Unstructured(0.5)}

    def make_timeline(self):
        return Timeline((Phase("half", 2, View("half", "half")), Phase("none", 0, View(ALL, ALL)),
                         Phase("rest", 1, View(ALL, rest("half"), frozen=True))))

    def setup(self):
        self.ended = []
        masks = [torch.arange(w.numel()).view(w.shape) % 2 == 0 for w in self.weights]
        self.masks.write("half", masks, [int(m.sum()) for m in masks])

    def on_phase_end(self, moment):
        self.ended.append((self.steps, moment.phase.name, moment.cycle, [w.detach().clone() for w in self.weights]))
        if moment.phase.name == "rest":
            masks = [~mask for mask in self.masks["half"]]
            self.masks.write("half", masks, [int(m.sum()) for m in masks])


def attached(optimizer="sgd", **fields):
    torch.manual_seed(1)
    net = small_convnet()
    opt = {"sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
           "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3)}[optimizer](net.parameters())
    return net, opt, Alternating(net, opt, total_steps=60, metrics=False, **fields)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("hooked", [False, True])
def test_a_phase_ends_after_the_update_of_its_last_step(optimizer, hooked):
    net, opt, s = attached(optimizer)
    if hooked:
        s.hook()
    for step in range(7):
        before = [w.detach().clone() for w in s.weights]
        count, mask = len(s.ended), [m.clone() for m in s.masks["half"]]
        backward(net, step)
        opt.step() if hooked else s.step()
        opt.zero_grad()
        assert len(s.ended) - count == (step % 3 != 0)                          # a phase of no steps never begins and never ends
        if step % 3:
            number, name, cycle, weights = s.ended[-1]
            assert (number, name, cycle) == (step, ("half", "rest")[step % 3 - 1], step // 3)
            assert all(torch.equal(a, b) for a, b in zip(weights, s.weights))
            assert not any(torch.equal(a, b) for a, b in zip(weights, before))
        exchanged = step % 3 == 2
        assert all(torch.equal(m ^ exchanged, now) for m, now in zip(mask, s.masks["half"]))
        for w, was, m in zip(s.weights, before, mask):                          # the step itself still used the old masks
            moving = ~m if exchanged else m
            assert torch.equal(w.detach()[~moving], was[~moving]) and (w.detach()[moving] != was[moving]).all()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_frozen_view_holds_all_but_the_masked_weights(optimizer):
    net, opt, s = attached(optimizer)
    train(net, s, range(2))
    others = [p for p in net.parameters() if not any(p is w for w in s.weights)]
    def copies():
        states = [torch.as_tensor(v).clone() for p in others for v in opt.state[p].values()]
        return [p.detach().clone() for p in others] + states + [b.clone() for b in net.buffers()]
    before, shaped = copies(), [[v.clone() for v in opt.state[w].values() if v.shape == w.shape] for w in s.weights]
    mask = [m.clone() for m in s.masks["half"]]
    backward(net, 2)
    assert all(p.grad is not None for p in others)
    s.step()
    assert all(torch.equal(a, b) for a, b in zip(before, copies())) and all(p.grad is None for p in others)
    for w, was, m in zip(s.weights, shaped, mask):
        now = [v for v in opt.state[w].values() if v.shape == w.shape]
        assert all(torch.equal(a[m], b[m]) for a, b in zip(now, was))
    train(net, s, [3])
    assert not any(torch.equal(a, b) for a, b in zip(before, copies()))


@pytest.mark.parametrize("stop", [2, 3])
def test_a_state_taken_before_and_after_a_frozen_step_goes_on_bit_for_bit(stop):
    net, opt, s = attached()
    train(net, s, range(stop))
    saved = net.state_dict(), opt.state_dict(), s.state_dict()
    saved = torch.utils._pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, saved)
    losses = train(net, s, range(stop, 12))
    other, other_opt, other_s = attached()
    other.load_state_dict(saved[0])
    other_opt.load_state_dict(saved[1])
    other_s.load_state_dict(saved[2])
    assert train(other, other_s, range(stop, 12)) == losses
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values()))


def test_further_masks_travel_in_checkpoints():
    class Two(Alternating):
        def setup(self):
            super().setup()
            self.masks.add("kept aside")
            self.masks.write("kept aside", [torch.zeros_like(m) for m in self.masks["half"]], [0] * len(self.weights))
    nets = [small_convnet() for _ in range(2)]
    one, other = (Two(net, torch.optim.SGD(net.parameters(), lr=0.1), total_steps=9, metrics=False) for net in nets)
    other.masks.write("kept aside", other.masks["half"], other.masks.counts("half"))
    assert one.subnets == ("half",) and other.masks.nnz("kept aside") > 0
    saved = one.state_dict()
    other.load_state_dict(saved)
    assert other.masks.nnz("kept aside") == 0 and not any(m.any() for m in other.masks["kept aside"])
    saved["meta"]["counts"]["kept aside"] = [1] * len(one.weights)
    with pytest.raises(ValueError, match="kept weights per layer in the masks of kept aside"):
        other.load_state_dict(saved)


def test_the_rest_of_a_mask_follows_it():
    masks = MaskSet({"a": torch.ones(2, 3), "b": torch.ones(4)})
    masks.add("net")
    assert rest("net") == "~net" and masks.counts("~net") == [0, 0] and [m.tolist() for m in masks.active("~net")] == [[[False] * 3] * 2, [False] * 4]
    one = torch.tensor([[True, False, False], [False, False, True]])
    masks.write("net", [one, torch.zeros(4, dtype=torch.bool)], [2, 0])
    assert masks.counts("~net") == [4, 4] and masks.nnz("~net") == 8 and masks.sparsity("~net") == pytest.approx(0.2)
    assert torch.equal(masks["~net"][0], ~one) and masks.active("~net")[1] is None and masks.names == ("net",)
    with pytest.raises(ValueError, match="unknown sub-net 'other'; there are net"):
        masks.counts("~other")


def test_held_statistics_normalise_by_the_batch_and_record_nothing():
    net = small_convnet()
    held, x = HeldStatistics(net), toy_batch(0)[0]
    wanted = small_convnet()
    wanted.load_state_dict(net.state_dict())
    before = [b.clone() for b in net.buffers()]
    held.hold(True)
    torch.testing.assert_close(net(x), wanted(x), rtol=0, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), before)) and not all(torch.equal(a, b) for a, b in zip(wanted.buffers(), before))
    held.hold(False)
    net(x)
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), wanted.buffers()))


def test_norms_without_statistics_stay_without():
    net = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    held = HeldStatistics(net)
    held.hold(True)
    held.hold(False)
    assert [net[0].track_running_stats, net[2].track_running_stats] == [False, True]


def test_products_name_the_masks_of_the_step_at_hand():
    net, _, s = attached()
    seen = []
    for step in range(4):
        seen.append(s.products)
        train(net, s, [step])
    assert seen == [("half",) * 3] * 2 + [(ALL, ALL, "~half")] + [("half",) * 3]
    assert make()[2].products == ("0.5",) * 3
