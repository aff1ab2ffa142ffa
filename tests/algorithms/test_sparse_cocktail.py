"""Sparse Cocktail against its procedure: what trains when, exact ladders, unified masks, rewinding, the loss, and what is refused."""
import pytest
import torch
from ast_gc_runs import one_thread  # noqa: F401
from cocktail_runs import SHAPE, Block, banks, judge, make, numbers, train
from torch import nn
from torch.nn import functional as F

from sparsekern import SparseCocktail, ops
from sparsekern.sparsity.patterns import kept
from sparsekern.sparsity.timeline import ALL, Phase, Stages, View
from sparsekern.support.models import build_model
from sparsekern.testing import toy_batch

# When what happens.

def test_the_timeline_is_that_of_the_pseudo_code():
    net, _, s = make()
    seen = []
    for step in range(54):
        stage, b = (0, step) if step < 15 else (1 + (step - 15) // 13, (step - 15) % 13)
        nm = {1: "dense", 2: "1:2", 3: "2:4"}.get(stage)
        wanted = "dense" if stage == 0 or b % 2 == 0 else [f"u{stage}", f"c{stage}", nm][b // 2 % 3]
        assert s.active == wanted and s.number(step) == stage and s.stage(step) == f"stage {stage}/3"
        assert s.span(step) == ((0, 15) if stage == 0 else (15 + 13 * (stage - 1), 13))
        assert s.extra_forward == (None if stage == 0 or b % 2 == 0 else ALL)
        assert s.products == (wanted, wanted, wanted)
        train(net, s, [step])
        seen.append(sorted(s.digests))
    assert [seen.index(names) for names in (["R"], ["D1", "R"], ["D1", "D2", "R"], ["D1", "D2", "D3", "R"])] == [3, 27, 40, 53]
    events = [(record["step"], record["subnet"]) for record in s.history]
    assert events == [(14, "u1"), (14, "c1"), (27, "u2"), (27, "1:2"), (27, "c2"), (40, "u3"), (40, "2:4"), (40, "c3")]


@pytest.mark.filterwarnings("ignore:left dense")
def test_the_default_gives_24_nets_on_the_papers_ladders():
    net = Block()
    s = SparseCocktail(net, torch.optim.SGD(net.parameters(), lr=0.1), total_steps=1657, shape=SHAPE)
    assert s.subnets == ("dense", *(f"u{k}" for k in range(1, 11)), *(f"c{k}" for k in range(1, 11)), "1:2", "2:4", "4:8")
    c = s.config
    assert (c.nm_stages, c.stage_steps, c.dense_steps, c.rewind_steps, c.beta) == ([2, 5, 8], 150, 157, 8, 0.8)
    u, ch = ([round(s.patterns[f"{kind}{k}"].sparsity, 3) for k in range(1, 11)] for kind in "uc")
    assert u == [.2, .36, .488, .59, .672, .738, .79, .832, .866, .893] and ch == [.1, .19, .271, .344, .41, .469, .522, .57, .613, .651]
    assert [str(pattern) for pattern in s.patterns.values()] == ["dense"] + ["unstructured"] * 10 + ["channel"] * 10 + ["1:2", "2:4", "4:8"]


@pytest.mark.filterwarnings("ignore:left dense")
@pytest.mark.parametrize("stages, n, wanted", [(10, 3, [2, 5, 8]), (3, 3, [1, 2, 3]), (5, 2, [2, 4]), (4, 3, [2, 3, 4]), (1, 1, [1]), (2, 1, [2])])
def test_default_stages_of_nm_nets(stages, n, wanted):
    _, _, s = make(stages=stages, nm=["1:2", "2:4", "4:8"][:n], nm_stages=None, stage_steps=6, total_steps=100)
    assert s.config.nm_stages == wanted


def test_stages_is_a_pure_function_with_uneven_stages():
    views = [View(name, name) for name in "abc"]
    line = Stages(((Phase("a", 2, views[0]),), (Phase("b", 5, views[1]), Phase("c", 5, views[2]))))
    found = [(m.phase.name, m.cycle, m.position, m.offset, m.last) for m in map(line.at, range(9))]
    assert found == [("a", 0, 0, 0, False), ("a", 0, 0, 1, True), ("b", 1, 0, 0, False), ("c", 1, 1, 1, False), ("b", 1, 0, 2, False),
                     ("c", 1, 1, 3, False), ("b", 1, 0, 4, True), ("c", 1, 1, 5, False), ("b", 1, 0, 6, False)]
    assert line.length == 2 and line.starts == (0, 2, 7)
    with pytest.raises(ValueError, match="stage 0: expected phases of the same number of steps"):
        Stages(((Phase("a", 2, views[0]), Phase("b", 3, views[1])),))
    with pytest.raises(ValueError, match="at least one stage"):
        Stages(())


# Masks.

def test_masks_are_made_by_hand_from_the_trained_weights_of_the_stage_before():
    net, _, s = make()
    parent = [torch.ones_like(layer.param, dtype=torch.bool) for layer in s.prunable]
    for k, last in ((1, 14), (2, 27), (3, 40)):
        train(net, s, range(s.steps, last))
        weights = {}

        def spy(stage, found=weights, masks_of=s.masks_of):
            found.update({layer.name: layer.param.detach().clone() for layer in s.prunable})
            return masks_of(stage)
        s.masks_of = spy
        train(net, s, [last])
        del s.masks_of
        w = [weights[layer.name] for layer in s.prunable]
        ranked = torch.cat([value.abs().masked_fill(~mask, -1).flatten() for value, mask in zip(w, parent)])
        best = torch.zeros_like(ranked, dtype=torch.bool)
        best[ranked.argsort(descending=True, stable=True)[:kept(s.masks.numel, 1 - 0.8 ** k)]] = True
        u = [part.view_as(value) for part, value in zip(best.split([value.numel() for value in w]), w)]
        assert all(torch.equal(a, b) for a, b in zip(s.masks[f"u{k}"], u)) and s.masks.nnz(f"u{k}") == kept(s.masks.numel, 1 - 0.8 ** k)
        assert all(not (new & ~old).any() for new, old in zip(u, parent))
        n, m = {1: (1, 1), 2: (1, 2), 3: (2, 4)}[k]
        fits = [value.shape[1] % m == 0 for value in w]
        nm = [ops.nm_mask(value, n, m, dim=1) if fit else torch.ones_like(mask) for value, mask, fit in zip(w, u, fits)]
        if k > 1:
            assert all(torch.equal(a, b) for a, b in zip(s.masks[f"{n}:{m}"], nm)) and s.masks.nnz(f"{n}:{m}") == sum(int(a.sum()) for a in nm)
        score = {layer.name: ((0.8 * a + 0.2 * b) * v.abs()).flatten(1).sum(1) for layer, v, a, b in zip(s.prunable, w, u, nm)}
        coupled = score["conv2.weight"] + score["skip.weight"]
        for name, own in (("conv1", score["conv1.weight"]), ("conv2", coupled), ("skip", coupled), ("last", score["last.weight"])):
            rows = kept(len(own), 1 - 0.9 ** k)
            keep = torch.zeros(len(own), dtype=torch.bool)
            keep[own.argsort(descending=True, stable=True)[:rows]] = True
            mask = dict(zip(s.masks.layers, s.masks[f"c{k}"]))
            assert torch.equal(mask[f"{name}.weight"].flatten(1).all(1), keep) and torch.equal(mask[f"{name}.weight"].flatten(1).any(1), keep)
            norm = {"conv1": "bn1", "conv2": "bn2", "skip": "bn3"}.get(name)
            followers = [f"{norm}.weight", f"{norm}.bias"] if norm else ["last.bias"]
            assert all(torch.equal(mask[follower], keep) for follower in followers)
        counts = [int(mask.sum()) for mask in s.masks[f"c{k}"]]
        assert counts == s.masks.counts(f"c{k}")
        parent = u


def test_a_hidden_channel_is_exactly_zero_and_the_others_are_seen():
    net, _, s = make()
    train(net, s, range(54))
    seen = {}
    for name in ("bn1", "bn2", "bn3", "last"):
        net.get_submodule(name).register_forward_hook(lambda module, args, out, name=name: seen.__setitem__(name, out))
    for mode in (net.eval, net.train):
        mode()
        with s.subnet("c3"), torch.no_grad():
            net(toy_batch(3, 16)[0])
        for name, key in (("bn1", "bn1.weight"), ("bn2", "bn2.bias"), ("bn3", "bn3.weight"), ("last", "last.bias")):
            keep = s.masks["c3"][s.masks.layers.index(key)]
            assert 0 < keep.sum() < len(keep)
            assert torch.equal((seen[name] != 0).any(0).flatten(1).any(1), keep)


@pytest.mark.parametrize("fields, rule", [({"umg": False}, "gamma"), ({"naive_refill": True}, "u"), ({"coupled": False}, "alone")])
def test_ablations_of_the_channel_score(fields, rule):
    net, _, s = make(**fields)
    train(net, s, range(14))
    with torch.no_grad():
        net.bn2.weight.copy_(torch.arange(16.0))
        net.bn3.weight.copy_(-torch.arange(16.0).flip(0) * 3)
    found = s.masks_of(1)
    mask, u = (dict(zip(s.masks.layers, found[name][0])) for name in ("c1", "u1"))
    conv2, skip = ((u[f"{name}.weight"] * net.get_submodule(name).weight.abs()).flatten(1).sum(1) for name in ("conv2", "skip"))
    both = {"gamma": net.bn2.weight.abs() + net.bn3.weight.abs(), "u": conv2 + skip}.get(rule)
    for name, own in (("conv2", conv2), ("skip", skip)):
        weight = net.get_submodule(name).weight.abs().flatten(1).sum(1)
        score = 0.8 * own + 0.2 * weight if both is None else both
        keep = torch.zeros(16, dtype=torch.bool)
        keep[score.detach().argsort(descending=True, stable=True)[:14]] = True
        assert torch.equal(mask[f"{name}.weight"].flatten(1).any(1), keep)
    last = {"gamma": net.last.weight.abs(), "u": u["last.weight"] * net.last.weight.abs(),
            "alone": 0.8 * u["last.weight"] * net.last.weight.abs() + 0.2 * net.last.weight.abs()}[rule].flatten(1).sum(1)
    assert int(mask["last.bias"].sum()) == 9 and not mask["last.bias"][last.argmin()]


def test_members_of_groups_that_stay_whole_rank_their_own_and_norms_over_sums_follow_the_whole_sum_only():
    def choices(name):
        net = build_model(name)
        s = SparseCocktail(net, torch.optim.SGD(net.parameters(), lr=0.1), total_steps=110)
        groups = s.channels.masks.groups
        assert sorted(p for group in groups for p in group.producers) == sorted(layer.name.removesuffix(".weight") for layer in s.prunable)
        return {group.name: (len(group.producers), group.norms) for group in groups}
    padded = choices("resnet20")
    assert len(padded) == 18 and all(size == 1 and len(norms) == 1 for size, norms in padded.values())
    wide = choices("wrn-22-2")
    assert wide["blocks.0.shortcut"] == (4, ("blocks.1.bn1", "blocks.2.bn1", "blocks.3.bn1"))
    assert wide["blocks.0.conv1"] == (1, ("blocks.0.bn2",)) and len(wide) == 3 + 9
    projected = choices("resnet18")
    assert projected["stages.0.0.conv2"][0] == 1 and projected["stages.1.0.conv2"][0] == 3        # tied to the dense stem; free


def test_without_coupling_no_norm_over_a_sum_is_hidden():
    net = build_model("wrn-22-2")
    s = SparseCocktail(net, torch.optim.SGD(net.parameters(), lr=0.1), total_steps=110, coupled=False)
    norms = {layer.name.rsplit(".", 1)[0] for layer in s.channels.followers()}
    assert norms == {f"blocks.{i}.bn2" for i in range(9)}                           # bn1 and the last bn read sums
    assert all(len(group.producers) == 1 for group in s.channels.masks.groups)


# Training.

def test_the_loss_of_sparse_steps_is_half_labels_half_the_dense_nets_output():
    net, _, s = make()
    train(net, s, range(16))
    assert s.active == "u1"
    x, y = toy_batch(77, 16)
    before = banks(s)
    plain = Block()                                                                 # the dense net in train mode, by hand
    plain.load_state_dict(net.state_dict() | before["dense"])
    with torch.no_grad():
        z = plain(x).softmax(1)
    masked = Block()
    masked.load_state_dict(net.state_dict() | before["u1"])
    with torch.no_grad():
        for layer, mask in zip(s.prunable, s.masks["u1"]):
            masked.get_parameter(layer.name).mul_(mask)
    out = masked(x)
    wanted = 0.5 * F.cross_entropy(out, y) - 0.5 * (z * out.log_softmax(1)).sum(1).mean()
    loss = s.loss(net, x, y, F.cross_entropy)
    torch.testing.assert_close(loss, wanted)
    loss.backward()
    wanted.backward()
    for layer, mask in zip(s.prunable, s.masks["u1"]):
        torch.testing.assert_close(layer.param.grad, masked.get_parameter(layer.name).grad * mask)
    after = banks(s)
    torch.testing.assert_close(after["dense"]["bn1.running_mean"], plain.bn1.running_mean)              # the teacher is in train mode, too
    torch.testing.assert_close(after["u1"]["bn1.running_mean"], masked.bn1.running_mean)
    assert torch.equal(after["c1"]["bn1.running_mean"], before["c1"]["bn1.running_mean"]) and s.active == "u1"


@pytest.mark.parametrize("fields", [{"distill": False}, {"pivot": False}])
def test_without_distillation_the_loss_is_the_criterion(fields):
    net, _, s = make(**fields)
    train(net, s, range(16))
    assert s.extra_forward is None and s.active == ("c1" if "pivot" in fields else "u1")
    calls = []
    loss = s.loss(net, *toy_batch(77, 16), lambda out, y: calls.append(out) or F.cross_entropy(out, y))
    assert len(calls) == 1 and torch.equal(loss, F.cross_entropy(calls[0], toy_batch(77, 16)[1]))
    assert [s.timeline.at(step).phase.name for step in range(15, 21)] == (["u", "c", "nm"] * 2 if "pivot" in fields else
                                                                          ["dense", "u", "dense", "c", "dense", "nm"])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_every_stage_starts_from_the_snapshot_with_an_empty_optimizer(optimizer):
    net, opt, s = make(optimizer=optimizer)
    train(net, s, range(4))
    snapshot = numbers(net)
    for last, names in ((14, "u1 c1"), (27, "u2 c2 1:2"), (40, "u3 c3 2:4")):
        train(net, s, range(s.steps, last))
        late = banks(s)
        train(net, s, [last])
        now = numbers(net)
        assert s.active == "dense" and all(torch.equal(now[key], snapshot[key]) for key in snapshot) and not opt.state
        for name, bank in banks(s).items():
            fresh = name in [*names.split(), "dense"]
            assert all(torch.equal(value, snapshot[key] if fresh else late[name][key]) for key, value in bank.items())
    stored = s.store.open("D2")
    assert stored.meta["step"] == 41 and stored.names == s.store.open("D1").names


def test_the_snapshot_may_be_the_end_of_the_dense_stage():
    net, _, s = make(rewind_steps=15)
    train(net, s, range(14))
    assert not s.digests
    train(net, s, [14])
    reader, now = s.store.open("R"), numbers(net)
    assert sorted(s.digests) == ["R"] and len(s.history) == 2
    assert all(torch.equal(reader[f"model/{key}"], now[key]) for key in ("stem.weight", "fc.bias"))


def test_without_rewinding_weights_momentum_and_norms_go_on():
    net, opt, s = make(rewind=False)
    train(net, s, range(28))                                                        # the first step of stage 2 comes next
    assert sorted(s.digests) == ["D1"] and opt.state
    d1, now = s.store.open("D1"), numbers(net)
    assert all(torch.equal(d1[f"model/{key}"], now[key]) for key in ("conv1.weight", "fc.weight"))
    for name, part in (("u2", "u"), ("c2", "c"), ("1:2", "nm"), ("dense", "dense")):
        assert all(torch.equal(value, d1[f"norm/{part}/{key}"]) for key, value in banks(s)[name].items())


def test_a_sub_net_is_the_dense_net_until_its_stage_and_keeps_its_norms_after_it():
    net, _, s = make()
    train(net, s, range(20))
    evaluate = judge(net, s)
    assert evaluate("u2") == evaluate("dense") == evaluate("c3") and s.masks.sparsity("u2") == 0
    before = banks(s)
    train(net, s, range(20, 30))
    after = banks(s)
    for name in ("u2", "c2", "1:2"):
        assert any(not torch.equal(before[name][key], after[name][key]) for key in after[name])
    trained = banks(s)["u1"]
    train(net, s, range(30, 54))
    assert all(torch.equal(trained[key], value) for key, value in banks(s)["u1"].items())


def test_one_bank_of_norms_when_shared():
    net, _, s = make(bn="shared")
    train(net, s, range(54))
    assert len(s.norms.banks) == 1 and not [key for key in s.store.open("D3").names if key.startswith("norm/")]
    assert "model/bn1.running_mean" in s.store.open("D3").names
    bn1 = s.masks["c3"][s.masks.layers.index("bn1.weight")]
    with s.subnet("c3"), torch.no_grad():
        assert ((net.bn1(torch.randn(8, 12, 4, 4)) != 0).any(0).flatten(1).any(1) == bn1).all()
    s.finalize(judge(net, s), lambda: pytest.fail("shared norms are not measured anew"))


def test_linear_layers_of_an_mlp():
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
    _, _, s = make(net, linear=True, shape=None)
    assert [layer.name for layer in s.prunable] == ["1.weight", "4.weight"] and not s.config.share_first_norm
    losses = train(net, s, range(54))
    assert losses[-1] < losses[0] and s.masks.counts("c3")[1] == kept(16, 1 - 0.9 ** 3) * 32
    with pytest.raises(ValueError, match="linear=True"):
        make(nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.ReLU(), nn.Linear(4, 4)))


# What is refused, and leaves everything as it was.

@pytest.mark.parametrize("fields, words", [
    ({"stages": 0}, "stages: expected at least 1"),
    ({"stages": 1, "nm_stages": None}, "nm: expected different patterns, at most one for each of the 1 stages"),
    ({"nm": "1:2,1:2"}, "nm: expected different patterns"),
    ({"nm_stages": [3, 2]}, "nm_stages: expected 2 rising"),
    ({"nm_stages": [0, 2]}, "nm_stages: expected 2 rising"),
    ({"rate": [0.2, 0.2]}, "rate: expected one number, or one for each of the 3 stages"),
    ({"rate": 1.0}, r"rate: expected shares in \[0, 1\)"),
    ({"channel_rate": -0.1}, r"channel_rate: expected shares in \[0, 1\)"),
    ({"rate": 0.95}, "rate: stage 3 would keep 0 weights of 4 layers"),
    ({"channel_rate": [0.1, 0.1, 0.95]}, "channel_rate: stage 3: at 0.9595 of the channels gone none would be left in conv1, last"),
    ({"beta": 1.5}, "beta"), ({"bn": "own"}, "bn: expected 'pattern' or 'shared'"), ({"naive_refill": True, "umg": False}, "naive_refill"),
    ({"score_batches": -1}, "score_batches"), ({"stage_steps": 5}, "stage_steps: expected at least 6"),
    ({"stage_steps": 18}, "at least 1 of the 54 steps left for the dense stage, got 18 and 0"),
    ({"rewind_steps": 16}, "rewind_steps: expected 1 to 15"), ({"shape": (1, 8, 8)}, r"coupled: .*\[1, 1, 8, 8\]"),
    ({"nm": "2:7", "nm_stages": None}, "2:7 fits no layer"),
    ({"stages": 2.5}, "stages: expected a whole number, got 2.5"), ({"stages": None}, "stages: expected a whole number, got None"),
    ({"stage_steps": 13.0}, "stage_steps: expected a whole number"), ({"rewind_steps": "4"}, "rewind_steps: expected a whole number, got '4'"),
    ({"score_batches": 1.5}, "score_batches: expected a whole number, got 1.5"), ({"nm_stages": 2}, r"nm_stages: expected 2 rising .*got \[2\]"),
    ({"rate": "0.2"}, "rate: expected shares .*got '0.2'"), ({"channel_rate": [0.1, 0.1, None]}, "channel_rate: expected shares")])
def test_settings_that_cannot_work_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        make(**fields)


@pytest.mark.parametrize("spoil, words", [
    (lambda net: net.conv2.weight.mul_(1e-6), r"stage 1: u1 \(0.85 of the weights gone\) would keep no weight of conv2.weight"),
    (lambda net: net.skip.weight[0, 0].fill_(float("nan")), "NaN in the weights of skip.weight")])
def test_a_stage_that_prunes_a_layer_away_is_refused_at_its_start_and_changes_nothing(spoil, words):
    net, opt, s = make(rate=[0.85, 0.0, 0.0])
    train(net, s, range(14))
    with torch.no_grad():
        spoil(net)
    masks, weights, stored = s.masks.packed(), numbers(net), dict(s.digests)
    with torch.no_grad(), pytest.raises(ValueError, match=words):
        s.on_phase_end(s.timeline.at(14))
    assert all(torch.equal(a, b) for a, b in zip(masks.values(), s.masks.packed().values())) and s.digests == stored and not s.history
    assert all(torch.equal(value, weights[key]) or value.isnan().any() for key, value in numbers(net).items()) and opt.state


def test_a_snapshot_of_another_run_is_refused_and_changes_no_masks_or_weights(tmp_path):
    net, opt, s = make()
    s.use_directory(tmp_path)
    train(net, s, range(27))
    _, _, other = make(Block(), rewind_steps=2)
    other.use_directory(tmp_path)
    train(other.model, other, range(2))                                             # its snapshot lies where this run's did
    masks, before = s.masks.packed(), {name: bank["bn1.weight"] for name, bank in banks(s).items()}
    with pytest.raises(ValueError, match="R.safetensors: a stage of another run"):
        train(net, s, [27])
    stored = s.store.open("D1")
    assert all(torch.equal(a, b) for a, b in zip(masks.values(), s.masks.packed().values())) and len(s.history) == 2 and opt.state
    assert torch.equal(net.conv1.weight, stored["model/conv1.weight"]) and torch.equal(banks(s)["u2"]["bn1.weight"], before["u2"])
