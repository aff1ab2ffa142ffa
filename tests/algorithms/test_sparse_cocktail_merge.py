"""Sparse Cocktail after its last stage, on the way to disk and back, and what it reports."""
import copy
import shutil

import pytest
import torch
from ast_gc_runs import one_thread  # noqa: F401
from cocktail_runs import SHAPE, Block, banks, inputs, judge, make, numbers, train
from dynamic_runs import assert_same_state
from torch import nn
from torch.nn import functional as F

from sparsekern.sparsity.channel_groups import find_channel_groups
from sparsekern.sparsity.interpolation import POOL
from sparsekern.sparsity.patterns import kept
from sparsekern.sparsity.slim import recalibrate, slim
from sparsekern.testing import toy_batch


@pytest.fixture(scope="module")
def over(tmp_path_factory):
    """(state after the last step, directory of the stages) of one run."""
    directory = tmp_path_factory.mktemp("stages")
    net, opt, s = make()
    s.use_directory(directory)
    train(net, s, range(54))
    return copy.deepcopy((net.state_dict(), opt.state_dict(), s.state_dict())), directory


def again(over, **fields):
    (model, optimizer, own), directory = over
    net, opt, s = make(**fields)
    s.use_directory(directory)
    own = copy.deepcopy(own)
    own["meta"]["config"] |= fields
    s.load_state_dict(own)
    net.load_state_dict(model)
    opt.load_state_dict(optimizer)
    return net, opt, s


# The merge.

def test_the_merged_weights_and_norms_are_the_greedy_interpolation_by_hand(over):
    net, _, s = again(over)
    scores = []
    by_hand = iter([*range(12), *range(12, 0, -1)])                         # of stage 2 the last candidate is best, of stage 3 the first
    calls = []

    def evaluate(name):
        calls.append(name)
        if name == "dense":
            scores.append(next(by_hand))
        return float(scores[-1])
    s.finalize(evaluate, inputs())
    assert s.alphas == [1.0, 0.05]
    two, three = ["dense", "u1", "u2", "c1", "c2", "1:2"], ["dense", "u1", "u2", "u3", "c1", "c2", "c3", "1:2", "2:4"]
    assert calls == two * len(POOL) + three * len(POOL)                      # the sub-nets that exist, the dense one once
    d = [s.store.open(f"D{k}") for k in (1, 2, 3)]

    def merged(key):
        return torch.lerp(d[0][key], d[2][key], 1 - 0.05)
    for key, value in numbers(net).items():
        if not key.startswith("bn") or (key.startswith("bn0") and "running" not in key and "num" not in key):
            torch.testing.assert_close(value, merged(f"model/{key}"), rtol=0, atol=0)
    for part, nets in {"dense": ["dense"], "u": ["u1", "u2", "u3"], "c": ["c1", "c2", "c3"], "nm": ["1:2", "2:4"]}.items():
        for name in nets:
            for key in ("bn1.weight", "bn2.bias"):
                torch.testing.assert_close(banks(s)[name][key], merged(f"norm/{part}/{key}"), rtol=0, atol=0)


def test_every_sub_net_has_statistics_of_its_own_over_all_batches(over):
    net, _, s = again(over)
    masks = s.masks.packed()
    s.finalize(judge(net, s), inputs(5))
    assert all(torch.equal(a, b) for a, b in zip(masks.values(), s.masks.packed().values()))
    found = []
    for name in s.subnets:
        plain = Block()
        plain.load_state_dict(numbers(net) | banks(s)[name])
        with torch.no_grad():
            for layer, mask in zip(s.masks.layers, s.masks[name]):
                plain.get_parameter(layer).mul_(mask)
        recalibrate(plain, inputs(5)())
        x = toy_batch(123, 16)[0]
        plain.eval(), net.eval()
        with s.subnet(name), torch.no_grad():
            torch.testing.assert_close(net(x), plain(x))
        net.train()
        found.append(banks(s)[name]["bn3.running_mean"])
    assert all(not torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


def test_the_merge_is_the_same_twice_and_tells_how_far_it_is(over):
    results = []
    for _ in range(2):
        net, _, s = again(over)
        told = []
        s.finalize(judge(net, s), inputs(), lambda *args, told=told: told.append(args))
        results.append((numbers(net), banks(s), s.alphas))
        assert [done for done, _, _ in told] == list(range(1, told[0][1] + 1)) and {total for _, total, _ in told} == {12 * (6 + 9) + 9}
    assert results[0][2] == results[1][2] and len(results[0][2]) == 2 and set(results[0][2]) <= set(POOL)
    assert all(torch.equal(value, results[1][0][key]) for key, value in results[0][0].items())
    assert all(torch.equal(value, results[1][1][name][key]) for name, bank in results[0][1].items() for key, value in bank.items())


@pytest.mark.parametrize("stop", [3, 80, 100, 185])
def test_an_interrupted_merge_goes_on_bit_for_bit(over, stop):
    net, _, s = again(over)
    s.finalize(judge(net, s), inputs())
    whole = numbers(net), banks(s), s.alphas
    net, opt, s = again(over)

    class Stop(Exception):
        pass

    def stopping(done, total, what):
        if done == stop:
            raise Stop
    with pytest.raises(Stop):
        s.finalize(judge(net, s), inputs(), stopping)
    saved = copy.deepcopy((net.state_dict(), opt.state_dict(), s.state_dict()))
    net, _, s = again((saved, over[1]))
    assert len(s.alphas) == (0 if stop <= 72 else 1 if stop <= 180 else 2)
    s.finalize(judge(net, s), inputs())
    assert s.alphas == whole[2] and all(torch.equal(value, whole[0][key]) for key, value in numbers(net).items())
    assert all(torch.equal(value, whole[1][name][key]) for name, bank in banks(s).items() for key, value in bank.items())


def test_without_interpolation_the_last_stage_serves_all(over):
    net, _, s = again(over, interpolate=False)
    with torch.no_grad():
        net.fc.weight.zero_()                                               # made again from the stored stage
    s.finalize(lambda name: pytest.fail("nothing to choose"), inputs())
    d3 = s.store.open("D3")
    assert torch.equal(net.conv1.weight, d3["model/conv1.weight"]) and torch.equal(net.fc.weight, d3["model/fc.weight"]) and s.alphas == []
    assert torch.equal(banks(s)["u1"]["bn1.weight"], d3["norm/u/bn1.weight"]) and torch.equal(banks(s)["1:2"]["bn2.bias"], d3["norm/nm/bn2.bias"])


def test_with_no_batches_to_judge_on_the_merged_statistics_are_used(over):
    net, _, s = again(over, score_batches=0)
    seen = {}

    def evaluate(name):
        seen.setdefault(name, []).append(banks(s)[name]["bn1.running_mean"])
        return 0.0
    s.finalize(evaluate, inputs())
    d1, d2 = (s.store.open(f"D{k}")["norm/u/bn1.running_mean"] for k in (1, 2))
    assert s.alphas == [0.05, 0.05]                                          # of equal scores the first
    for mean, alpha in zip(seen["u1"], POOL):
        torch.testing.assert_close(mean, torch.lerp(d1, d2, 1 - alpha))
    assert all(torch.equal(a, b) for a, b in zip(seen["u1"], seen["u2"]))


def test_finalize_says_what_is_missing(over, tmp_path):
    net, _, s = make()
    with pytest.raises(ValueError, match="finalize: expected the run of 54 steps to be over, it is at step 0"):
        s.finalize(judge(net, s), inputs())
    net, _, s = again(over)
    with pytest.raises(ValueError, match="batches: expected at least one"):
        s.finalize(judge(net, s), inputs(0))
    shutil.copytree(over[1], tmp_path / "copy")
    net, _, s = again((over[0], tmp_path / "copy"))
    (tmp_path / "copy" / "D2.safetensors").unlink()
    with pytest.raises(ValueError, match="D2.safetensors is missing"):
        s.finalize(judge(net, s), inputs())
    net, _, s = again(over)
    s.remove()
    before = numbers(net)
    with pytest.raises(ValueError, match="finalize: this sparsifier was removed"):
        s.finalize(judge(net, s), inputs())
    assert all(torch.equal(value, before[key]) for key, value in numbers(net).items()) and s.alphas == []


class NormBehindAPrunedLayer(nn.Module):
    """The first convolution has no norm, so the only norm of the net sees what masks do."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.bn, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.Linear(12, 4)

    def forward(self, x):
        return self.fc(F.relu(self.bn(self.conv(F.relu(self.stem(x))))).mean((2, 3)))


def test_a_first_norm_behind_a_pruned_layer_is_not_shared():
    net, _, s = make(NormBehindAPrunedLayer())
    train(net, s, range(54))
    s.finalize(judge(net, s), inputs())
    pictures = torch.cat(list(inputs()()))
    for name in s.subnets:
        with s.subnet(name), torch.no_grad():
            mean = net.conv(F.relu(net.stem(pictures))).mean((0, 2, 3))
        shown = s.masks[name][s.masks.layers.index("bn.weight")]
        torch.testing.assert_close(banks(s)[name]["bn.running_mean"][shown], mean[shown])


def test_without_norms_nothing_is_measured():
    net, _, s = make(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)))
    train(net, s, range(54))
    s.finalize(judge(net, s), lambda: pytest.fail("no norm asks for batches"))
    assert len(s.alphas) == 2


# To disk and back.

@pytest.mark.parametrize("optimizer, stop", [("sgd", 3), ("sgd", 4), ("sgd", 15), ("sgd", 21), ("sgd", 28), ("sgd", 53), ("adam", 27), ("adam", 33)])
def test_resuming_is_bit_exact_at_any_step(optimizer, stop, tmp_path):
    net, opt, s = make(optimizer=optimizer)
    s.use_directory(tmp_path / "one")
    train(net, s, range(stop))
    saved = copy.deepcopy((net.state_dict(), opt.state_dict(), s.state_dict()))
    if (tmp_path / "one").exists():
        shutil.copytree(tmp_path / "one", tmp_path / "other")
    losses = train(net, s, range(stop, 54))
    other, other_opt, other_s = make(optimizer=optimizer)
    other_s.use_directory(tmp_path / "other")
    train(other, other_s, range(2))                                          # whatever is there is replaced
    other_s.load_state_dict(saved[2])
    other.load_state_dict(saved[0])
    other_opt.load_state_dict(saved[1])
    assert train(other, other_s, range(stop, 54)) == losses
    for one in (s, other_s):
        one.finalize(judge(one.model, one, 32), inputs(2))
    assert_same_state((net.state_dict(), opt.state_dict(), s.state_dict()), (other.state_dict(), other_opt.state_dict(), other_s.state_dict()))


def test_a_state_without_its_stages_or_with_other_ones_is_refused(over, tmp_path):
    (_, _, own), directory = over
    _, _, s = make()
    with pytest.raises(ValueError, match="'R' is not in memory"):
        s.load_state_dict(own)
    shutil.copytree(directory, tmp_path / "copy")
    shutil.copy(tmp_path / "copy" / "D1.safetensors", tmp_path / "copy" / "D3.safetensors")
    s.use_directory(tmp_path / "copy")
    before = s.state_dict()
    with pytest.raises(ValueError, match="D3.safetensors: it holds stage 'D1'"):
        s.load_state_dict(own)
    after = s.state_dict()
    assert before["meta"] == after["meta"] and all(torch.equal(value, after["tensors"][key]) for key, value in before["tensors"].items())
    net, _, s = make()
    train(net, s, range(5))
    with pytest.raises(ValueError, match="R lie in memory already; call it before the first step"):
        s.use_directory(tmp_path)


@pytest.mark.parametrize("extra", [{"alphas": [0.15]}, {"alphas": "0.5"}, {"stages": ["R"]}])
def test_a_state_with_other_alphas_or_stages_than_there_can_be_is_refused(over, extra):
    (_, _, own), directory = over
    _, _, s = make()
    s.use_directory(directory)
    own = copy.deepcopy(own)
    own["meta"]["extra"] |= extra
    with pytest.raises(ValueError, match="sparsifier state: extra: expected alphas of"):
        s.load_state_dict(own)
    assert s.steps == 0 and s.alphas == [] and s.digests == {}


# What is reported, and given back.

@pytest.mark.parametrize("coupled", [True, False])
def test_what_reads_hidden_channels_costs_less_where_they_can_be_removed(coupled):
    net, _, s = make(coupled=coupled)
    train(net, s, range(54))
    one, two, last = 9 / 12, 12 / 16, 7 / 10                                 # of the channels of conv1, of conv2 and skip, of last
    rows = {"conv1.weight": one, "conv2.weight": two, "skip.weight": two, "last.weight": last}
    reads = {"conv2.weight": one, "last.weight": two, "fc.weight": last} if coupled else {}
    assert s.masks.densities("c3") == pytest.approx({name: rows.get(name, 1) * reads.get(name, 1) for name in [*rows, *reads]})
    assert s.masks.densities("u3").keys() == rows.keys() and s.masks.densities("dense") == dict.fromkeys(rows, 1.0)
    weights = {name: value.numel() for name, value in net.named_parameters() if name.removesuffix(".weight") in ("stem", "fc") or name in rows}
    left = sum(count * s.masks.densities("c3").get(name, 1.0) for name, count in weights.items())
    assert s.masks.effective_sparsity("c3") == pytest.approx(1 - left / sum(weights.values()))
    assert s.masks.effective_sparsity("u3") == s.masks.sparsity("u3")


def test_metrics_tell_stages_alphas_flops_and_events(over):
    net, _, s = again(over)
    s.alphas = [0.5, 1.0]
    found = s.metrics()
    assert found["stages"] == [[0, 15], [15, 13], [28, 13], [41, 13]] and found["alphas"] == [0.5, 1.0]
    paper, honest = found["training_flops_by_subnet"]["paper"], found["training_flops_by_subnet"]["honest"]
    assert sum(paper.values()) == pytest.approx(3)                          # a step costs 3 forward passes' worth, of one net or another
    dense, sparse = 15 + 3 * 7 + 2, 3 * 6 - 2                               # of 13 steps 7 are dense; in stage 1 the n:m steps are so, too
    assert paper["dense"] == pytest.approx(3 * dense / 54) and sum(paper.values()) - paper["dense"] == pytest.approx(3 * sparse / 54)
    assert honest["dense"] - paper["dense"] == pytest.approx(3 * 6 / 54)    # the teacher's passes
    assert {name: event["sparsity"] for event in found["events"] for name in [event["subnet"]]} == {
        name: s.masks.sparsity(name) for name in s.subnets if name != "dense"}
    assert ["u1", "u2"] in [row["subnets"] for row in found["overlap"]] and len(found["overlap"]) == 2 * 2 + 3
    for row in found["overlap"]:
        if row["subnets"][0][0] == row["subnets"][1][0] == "u":
            assert row["non_overlap"] == pytest.approx(row["least"])        # nested
    rows = {row["name"]: row for row in s.summary()}
    assert [rows[name]["pattern"] for name in ("dense", "u1", "c1", "1:2")] == ["dense", "unstructured", "channel", "1:2"]
    assert rows["u1"]["prunable"] == sum(layer.param.numel() for layer in s.prunable) and "bn1.weight" not in rows["c1"]["layers"]


@pytest.mark.parametrize("name", ["dense", "u2", "c3", "2:4"])
def test_remove_leaves_the_sub_net_as_a_plain_model(over, name):
    net, _, s = again(over)
    s.finalize(judge(net, s), inputs())
    x = toy_batch(5, 16)[0]
    net.eval()
    with s.subnet(name), torch.no_grad():
        wanted = net(x)
    plain = s.remove(name)
    with torch.no_grad():
        assert torch.equal(plain(x), wanted)
    assert "forward" not in vars(plain.bn1) and (name == "dense") == bool((plain.conv2.weight != 0).all())
    if name == "c3":
        assert ((plain.bn1.weight == 0) == (plain.conv1.weight.flatten(1) == 0).all(1)).all() and (plain.bn1.weight == 0).any()


def test_a_run_learns_without_the_trainer_and_under_a_scaler():
    net, opt, s = make(total_steps=108, stage_steps=24)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** 10)
    for step in range(108):
        x, y = toy_batch(step, 16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = s.loss(net, x, y, F.cross_entropy)
        scaler.scale(loss).backward()
        assert all(layer.param.grad is not None for layer in s.prunable)    # weights that the teacher cast are cast again
        s.step(scaler=scaler)
        scaler.update()
        opt.zero_grad()
    s.finalize(judge(net, s), inputs())
    assert min(judge(net, s)(name) for name in s.subnets) > 0.8


def test_the_shape_of_one_input_is_a_setting():
    assert make()[2].config.shape == SHAPE and len(make(shape=None)[2].channels.masks.groups) == 3       # the net takes any size


def test_removing_the_coupled_channels_changes_nothing(over):
    net, _, s = again(over)
    s.finalize(judge(net, s), inputs())
    x = toy_batch(5, 16)[0]
    plain = s.remove("c3").eval()
    groups = find_channel_groups(plain, x)
    keep = {group.name: ~(plain.get_submodule(group.name).weight.flatten(1) == 0).all(1) for group in groups if not group.fixed}
    small = slim(plain, groups, keep)
    assert (small.conv1.out_channels, small.skip.out_channels, small.last.out_channels) == tuple(kept(n, 1 - 0.9 ** 3) for n in (12, 16, 10))
    with torch.no_grad():
        torch.testing.assert_close(small(x), plain(x))
