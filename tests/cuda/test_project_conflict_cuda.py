"""project_conflict_ and project_conflict_sgd_ through their CUDA bindings against the float64 reference."""
import math

import pytest
import torch

from sparsekern import ops
from sparsekern.testing import assert_close, double, random_masks

SCALARS = {"weight_decay": 0.01, "momentum": 0.9, "lr": 0.1, "dampening": 0.0, "nesterov": False, "maximize": False, "is_first_step": False}
PLAIN = SCALARS | {"weight_decay": 0.0, "momentum": 0.0, "lr": 0.5}
VARIANTS = [{}, {"nesterov": True, "per_tensor": True}, {"maximize": True, "dampening": 0.3}, {"is_first_step": True, "dampening": 0.5},
            {"momentum": 0.0, "invert": True, "per_tensor": True}, {"outside": "zero"}, {"outside": "zero", "invert": True},
            {"outside": "zero", "assume_clean": True}]
PAIRS = [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.float32, torch.float16), (torch.bfloat16, torch.bfloat16),
         (torch.float16, torch.float16)]
SHAPES = [(0,), (), (33,), (17, 13), (5, 0, 3), (4099,), (8200,)]
NONE = torch.empty(0, dtype=torch.bool)
PROJECT, UPDATE = "project_conflict_", "project_conflict_sgd_"
each_form = pytest.mark.parametrize("form", ["bool", "bits", "none"])


def reference(op, *arguments, **options):
    ops.implementations(op)["reference"](*arguments, **options)


def conflicting(shapes, dtype=torch.float32):
    a = [torch.randn(s) for s in shapes]
    return [x.to(dtype) for x in a], [(torch.randn(x.shape) - x).to(dtype) for x in a]


def in_form(masks, form):
    return {"bool": masks, "bits": [ops.pack_mask(m) for m in masks], "none": [NONE] * len(masks)}[form]


def same_bits(a, b):
    return torch.equal(a.cpu().flatten().view(torch.uint8), b.cpu().flatten().view(torch.uint8))


# ---- worked examples ----

def test_worked_examples(lane):
    # d = -1, q = 2: g_i + 0.5 g_j; the cosine is -1 / sqrt(1 * 2).
    a, b, stats = lane.put([torch.tensor([1.0, 0.0])]), lane.put([torch.tensor([-1.0, 1.0])]), lane.put(torch.empty(1, 4))
    lane.op(PROJECT)(a, b, stats=stats)
    assert a[0].tolist() == [0.5, 0.5] and b[0].tolist() == [-1.0, 1.0]
    torch.testing.assert_close(stats.cpu(), torch.tensor([[-1.0, 2.0, -math.sqrt(0.5), 1.0]]))
    # The hidden third element would turn the sign, the fourth is NaN.
    for mask in (torch.tensor([True, True, False, False]), torch.tensor([3], dtype=torch.int32)):
        a = lane.put([torch.tensor([1.0, 0.0, 100.0, math.nan])])
        lane.op(PROJECT)(a, lane.put([torch.tensor([-1.0, 1.0, 100.0, math.nan])]), masks=lane.put([mask]))
        assert a[0][:3].tolist() == [0.5, 0.5, 100.0] and a[0][3].isnan()
    # (1, 0) becomes (0.5, 0.5); 1 - 0.5 * 0.5 = 0.75.
    param, a = lane.put([torch.ones(3)]), lane.put([torch.tensor([1.0, 0.0, math.nan])])
    lane.op(UPDATE)(param, a, lane.put([torch.tensor([-1.0, 1.0, math.nan])]), [], lane.put([torch.tensor([True, True, False])]), **PLAIN)
    assert param[0].tolist() == [0.75, 0.75, 1.0] and a[0][:2].tolist() == [1.0, 0.0]


def test_worked_example_per_tensor_and_global(lane):
    # Products -2 and 6: together no conflict; by themselves the first is projected to 0. The third has no partner, the fourth is empty.
    a = lane.put([torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([5.0]), torch.empty(0)])
    b, stats = lane.put([torch.tensor([-2.0]), torch.tensor([3.0]), torch.empty(0), torch.empty(0)]), lane.put(torch.full((4, 4), math.nan))
    lane.op(PROJECT)(a, b)
    assert [x.item() for x in a[:3]] == [1.0, 2.0, 5.0]
    lane.op(PROJECT)(a, b, per_tensor=True, stats=stats)
    assert [x.item() for x in a[:3]] == [0.0, 2.0, 5.0]
    assert stats.tolist() == [[-2.0, 4.0, -1.0, 1.0], [6.0, 9.0, 1.0, 0.0], [0.0] * 4, [0.0] * 4]


@pytest.mark.parametrize("case", ["nan", "inf", "overflow", "zero", "negative zero", "eps", "measure only", "agreement"])
def test_untouched_bit_for_bit_when_nothing_applies(lane, case):
    a, b, eps = [1.0, 2.0, -0.0], [-1.0, -1.0, 3.0], 0.0
    if case in ("nan", "inf", "overflow"):
        a[2], b[2] = 1.0, {"nan": math.nan, "inf": -math.inf, "overflow": -3e38}[case]
    elif case == "zero":
        b = [-0.0, 0.0, 0.0]
    elif case == "negative zero":
        a, b = [0.0, 0.0, -0.0], [-1.0, -1.0, -1.0]
    elif case == "agreement":
        b = [1.0, 1.0, 1.0]
    else:
        eps = 11.0 if case == "eps" else math.inf
    before = torch.tensor(a)
    for per_tensor in (False, True):
        mine, stats = lane.put([before]), lane.put(torch.full((1, 4), math.nan))
        lane.op(PROJECT)(mine, lane.put([torch.tensor(b)]), eps=eps, stats=stats, per_tensor=per_tensor)
        assert same_bits(mine[0], before) and stats[0, 3] == 0
    if case == "measure only":
        assert stats[0, :2].tolist() == [-3.0, 11.0]


# ---- agreement ----

@each_form
@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_projection_agrees_with_float64(lane, dtype, per_tensor, form):
    a, b = conflicting(SHAPES, dtype)
    b[2] = torch.empty(0, dtype=dtype)
    masks = random_masks(a, 0.4)
    want, want_stats = double(a), torch.empty(len(a) if per_tensor else 1, 4)
    reference(PROJECT, want, double(b), masks=in_form(masks, form), per_tensor=per_tensor, stats=want_stats)
    mine, stats = lane.put(a), lane.put(torch.full_like(want_stats, math.nan))
    lane.op(PROJECT)(mine, lane.put(b), masks=lane.put(in_form(masks, form)), per_tensor=per_tensor, stats=stats)
    for x, y, before, mask in zip(mine, want, a, masks):
        assert_close(x.cpu(), y)
        if form != "none":
            assert torch.equal(x.cpu()[~mask], before[~mask])
    assert torch.equal(stats[:, 3].cpu(), want_stats[:, 3]) and want_stats[-1, 3] == 1
    torch.testing.assert_close(stats.cpu(), want_stats, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("pair, variant, form", [(PAIRS[(i + j) % 5], v, f) for i, v in enumerate(VARIANTS)
                                                 for j, f in enumerate(["bool", "bits", "none"])], ids=str)
def test_update_agrees_with_float64(lane, pair, variant, form):
    a, b = conflicting(SHAPES, pair[1])
    b[3] = torch.empty(0, dtype=pair[1])
    params, buffers = ([torch.randn(s).to(pair[0]) for s in SHAPES] for _ in range(2))
    masks = random_masks(params, 0.4)
    if variant.get("assume_clean") and form != "none":
        for x, mask in zip(params + buffers, masks * 2):
            x.mul_(mask)
    want_p, want_v, mine = double(params), double(buffers), [lane.put(x) for x in (params, a, b, buffers)]
    reference(UPDATE, want_p, double(a), double(b), want_v, in_form(masks, form), **SCALARS | variant)
    lane.op(UPDATE)(*mine, lane.put(in_form(masks, form)), **SCALARS | variant)
    for got, want in zip(mine[0] + mine[3], want_p + want_v):
        assert_close(got.cpu(), want)
    assert all(same_bits(x, y) for x, y in zip(mine[1] + mine[2], a + b))


def test_mixed_dtypes_are_one_decision(lane):
    kinds = [torch.float32, torch.bfloat16, torch.float32, torch.float16]
    a = [torch.randn(700, 7).to(t) for t in kinds]
    b = [torch.randn_like(x) - x for x in a]
    b[0] = a[0] + torch.randn_like(a[0])                                 # alone without a conflict, as a list with one
    want, stats, want_stats = double(a), lane.put(torch.empty(1, 4)), torch.empty(1, 4)
    reference(PROJECT, want, double(b), stats=want_stats)
    mine = lane.put(a)
    lane.op(PROJECT)(mine, lane.put(b), stats=stats)
    assert stats[0, 3] == 1
    torch.testing.assert_close(stats.cpu(), want_stats, rtol=1e-4, atol=1e-3)
    for x, y in zip(mine, want):
        assert_close(x.cpu(), y)


@each_form
@pytest.mark.parametrize("conflict", [False, True])
def test_update_is_projection_then_masked_sgd_bit_for_bit(lane, form, conflict):
    a, b = conflicting([(257, 3), (5000,), (33,)])
    b = b if conflict else [-x for x in b]
    params, buffers = ([torch.randn_like(x) for x in a] for _ in range(2))
    masks = lane.put(in_form(random_masks(a, 0.5), form))
    scaler = {"grad_scale": lane.put(torch.tensor([8.0])), "found_inf": lane.put(torch.tensor([0.0]))}
    for per_tensor in (False, True):
        p, g, v, q, w = (lane.put(x) for x in (params, a, buffers, params, buffers))
        lane.op(PROJECT)(g, lane.put(b), masks=masks, per_tensor=per_tensor)
        lane.op("masked_sgd_")(p, g, v, masks, **SCALARS, **scaler)
        lane.op(UPDATE)(q, lane.put(a), lane.put(b), w, masks, **SCALARS, **scaler, per_tensor=per_tensor)
        assert all(same_bits(x, y) for x, y in zip(p + v, q + w))


def test_overflow_and_learning_rate_stay_on_the_device(lane):
    a, b = conflicting([(65,), (7,)])
    masks, stats = lane.put([NONE, NONE]), lane.put(torch.empty(1, 4))
    params = lane.put([torch.ones(65), torch.ones(7)])
    lane.op(UPDATE)(params, lane.put(a), lane.put(b), [], masks, **PLAIN, found_inf=lane.put(torch.tensor([1.0])), stats=stats)
    assert all((p == 1).all() for p in params) and stats[0, 0] < 0 and stats[0, 3] == 0
    lane.op(UPDATE + ".tensor_lr")(params, lane.put(a), [lane.put(b[0]), lane.put(torch.empty(0))], [], masks,
                                   **PLAIN | {"lr": lane.put(torch.tensor(0.5))})
    projected = [a[0].double()]
    reference(PROJECT, projected, [b[0].double()])
    assert_close(params[0].cpu(), 1 - 0.5 * projected[0])
    assert_close(params[1].cpu(), 1 - 0.5 * a[1].double())


@pytest.mark.parametrize("shift", [1, 2, 3])
def test_views_give_the_sums_of_copies(lane, shift):
    n = 4096 + 77
    flat_a, flat_b = conflicting([(2 * n + 3,)])[0][0], torch.randn(2 * n + 3)
    parts = [slice(shift, shift + n), slice(shift + n, shift + 2 * n - 4)]
    whole_a, whole_b = lane.put(flat_a), lane.put(flat_b - flat_a)
    views, others = [whole_a[s] for s in parts], [whole_b[s] for s in parts]
    copies, stats, view_stats = [x.clone() for x in views], lane.put(torch.empty(2, 4)), lane.put(torch.empty(2, 4))
    before = whole_a.clone()
    lane.op(PROJECT)(copies, [x.clone() for x in others], per_tensor=True, stats=stats)
    lane.op(PROJECT)(views, others, per_tensor=True, stats=view_stats)
    assert same_bits(stats, view_stats) and all(same_bits(x, y) for x, y in zip(copies, views)) and stats[0, 3] == 1
    end = shift + 2 * n - 4
    assert same_bits(whole_a[:shift], before[:shift]) and same_bits(whole_a[end:], before[end:])


def test_layouts(lane):
    a = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    b, mask = torch.randn(4, 3, 5, 5) - a.contiguous(), torch.rand(4, 3, 5, 5) < 0.5
    want = double([a])
    reference(PROJECT, want, [b.double()], masks=[mask])
    mine = lane.put([a])
    lane.op(PROJECT)(mine, lane.put([b]), masks=lane.put([mask]))
    assert_close(mine[0].cpu(), want[0])
    with pytest.raises(ValueError, match=r"masks\[0\]: a packed mask goes with a row-major tensor"):
        lane.op(PROJECT)(mine, lane.put([b]), masks=lane.put([ops.pack_mask(mask)]))


def test_long_lists(lane):
    # Two launches per pass; 510 decisions or one.
    a, b = conflicting([(1 + 7 * (i % 9),) for i in range(510)])
    for per_tensor in (False, True):
        want, rows = double(a), 510 if per_tensor else 1
        want_stats, mine, stats = torch.empty(rows, 4), lane.put(a), lane.put(torch.empty(rows, 4))
        reference(PROJECT, want, double(b), per_tensor=per_tensor, stats=want_stats)
        lane.op(PROJECT)(mine, lane.put(b), per_tensor=per_tensor, stats=stats)
        assert_close(torch.cat([x.cpu() for x in mine]), torch.cat(want))
        assert torch.equal(stats[:, 3].cpu(), want_stats[:, 3])


# ---- misuse ----

@pytest.mark.parametrize("change, error, words", [
    ({"g_j": []}, ValueError, r"project_conflict_: g_j: expected a list of 1 .* got 0"),
    ({"masks": []}, ValueError, r"project_conflict_: masks: expected a list of 1 .* got 0"),
    ({"g_j": [torch.ones(3)]}, ValueError, r"g_j\[0\]: expected shape \[4\], got \[3\]"),
    ({"g_j": [torch.ones(4).half()]}, TypeError, r"g_j\[0\]: expected Float like g_i, got Half"),
    ({"g_i": [torch.ones(8)[::2]]}, ValueError, r"g_i\[0\]: expected a dense tensor"),
    ({"g_i": [torch.ones(4).double()], "g_j": [torch.ones(4).double()]}, TypeError, r"float32, bfloat16 or float16 on a CUDA device, got Double"),
    ({"masks": [torch.ones(3, dtype=torch.bool)]}, ValueError, r"masks\[0\]: expected a bool mask of shape \[4\], got \[3\]"),
    ({"stats": torch.ones(4)}, ValueError, r"stats: expected a contiguous \[1, 4\] tensor, got shape \[4\]"),
    ({"stats": torch.ones(1, 4).double()}, TypeError, r"stats: expected float32"),
])
def test_misuse(lane, change, error, words):
    arguments = {"g_i": [torch.ones(4)], "g_j": [torch.ones(4)]} | change
    if "dense" in words:
        arguments["g_i"] = [lane.put(torch.ones(8))[::2]]
    with pytest.raises(error, match=words):
        lane.op(PROJECT)(**{key: value if "dense" in words and key == "g_i" else lane.put(value) for key, value in arguments.items()})


@pytest.mark.parametrize("change, error, words", [
    ({"g_i": []}, ValueError, r"project_conflict_sgd_: g_i: expected a list of 1 .* got 0"),
    ({"g_j": [torch.ones(3)]}, ValueError, r"project_conflict_sgd_: g_j\[0\]: expected shape \[4\], got \[3\]"),
    ({"outside": "drop"}, ValueError, r'outside: expected "keep" or "zero", got'),
    ({"found_inf": torch.ones(2)}, ValueError, r"found_inf: expected one number"),
    ({"per_tensor": True, "stats": torch.ones(2, 4)}, ValueError, r"stats: expected a contiguous \[1, 4\] tensor, got shape \[2, 4\]"),
])
def test_misuse_update(lane, change, error, words):
    arguments = {"params": [torch.ones(4)], "g_i": [torch.ones(4)], "g_j": [torch.ones(4)], "momentum_buffers": [], "masks": [NONE]} | change
    with pytest.raises(error, match=words):
        lane.op(UPDATE)(**lane.put(arguments), **PLAIN)
