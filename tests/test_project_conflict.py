"""project_conflict_ and project_conflict_sgd_: one gradient without its part against another, alone and inside the SGD step."""
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekern import ops
from sparsekern._native import native
from sparsekern.testing import assert_close, awkward_shapes, double, each_implementation, random_masks, threads

SCALARS = {"weight_decay": 0.01, "momentum": 0.9, "lr": 0.1, "dampening": 0.0, "nesterov": False, "maximize": False, "is_first_step": False}
PLAIN = SCALARS | {"weight_decay": 0.0, "momentum": 0.0, "lr": 0.5}
VARIANTS = [{}, {"nesterov": True, "per_tensor": True}, {"maximize": True, "dampening": 0.3}, {"is_first_step": True, "dampening": 0.5},
            {"momentum": 0.0, "invert": True, "per_tensor": True}, {"outside": "zero"}, {"outside": "zero", "invert": True}]
PAIRS = [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.float32, torch.float16), (torch.bfloat16, torch.bfloat16),
         (torch.float16, torch.float16), (torch.float64, torch.float64)]
SHAPES = [(0,), (), (33,), (17, 13), (5, 0, 3), (4099,)]
NONE = torch.empty(0, dtype=torch.bool)
PROJECT, UPDATE = "project_conflict_", "project_conflict_sgd_"
each_project = pytest.mark.parametrize("name", each_implementation(PROJECT))
each_update = pytest.mark.parametrize("name", each_implementation(UPDATE))
# Everything for the compiled kernel, a cross-section for the others, which differ less and take longer.
UPDATES = [("cpu", p, v, f) for p in PAIRS for v in VARIANTS for f in ("bool", "bits", "none")] + [
    (n, p, v, f) for n in ("reference", "triton") for p in PAIRS[:5] for v in VARIANTS for f in ("bool", "bits", "none")
    if (p == PAIRS[1] and f == "bits") or (v is VARIANTS[1] and f != "bool")]
UPDATES = [case for case in UPDATES if case[0] in each_implementation(UPDATE)]
each_form = pytest.mark.parametrize("form", ["bool", "bits", "none"])


def call(name, *args, op=PROJECT, **kwargs):
    ops.implementations(op)[name](*args, **kwargs)


def bits(tensor):
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def conflicting(shapes, dtype=torch.float32):
    """Pairs whose products are negative, as a list and by themselves where a tensor has more than a few elements."""
    a = [torch.randn(s) for s in shapes]
    return [x.to(dtype) for x in a], [(torch.randn(x.shape) - x).to(dtype) for x in a]


def in_form(masks, form):
    return {"bool": masks, "bits": [ops.pack_mask(m) for m in masks], "none": [NONE] * len(masks)}[form]


# ---- worked examples ----

@each_project
def test_worked_example_conflict(name):
    # d = -1, q = 2: g_i + 0.5 g_j; cosine = -1 / sqrt(1 * 2).
    a, b, stats = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0]), torch.empty(1, 4)
    call(name, [a], [b], stats=stats)
    assert a.tolist() == [0.5, 0.5] and b.tolist() == [-1.0, 1.0]
    torch.testing.assert_close(stats, torch.tensor([[-1.0, 2.0, -math.sqrt(0.5), 1.0]]))


@each_project
def test_worked_example_agreement_changes_nothing(name):
    a, stats = torch.tensor([3.0, 4.0]), torch.empty(1, 4)
    call(name, [a], [torch.tensor([3.0, 4.0])], stats=stats)
    assert a.tolist() == [3.0, 4.0] and stats.tolist() == [[25.0, 25.0, 1.0, 0.0]]


@each_project
def test_worked_example_masks(name):
    # Active: (1, 0) against (-1, 1), as above. The hidden third element would turn the sign, the fourth is NaN.
    for mask in (torch.tensor([True, True, False, False]), torch.tensor([3], dtype=torch.int32)):
        a = torch.tensor([1.0, 0.0, 100.0, math.nan])
        call(name, [a], [torch.tensor([-1.0, 1.0, 100.0, math.nan])], masks=[mask])
        assert a[:3].tolist() == [0.5, 0.5, 100.0] and a[3].isnan()


@each_project
def test_worked_example_per_tensor_and_global(name):
    # Products -2 and 6: together no conflict; by themselves the first is projected to 0.
    make = lambda: [torch.tensor([1.0]), torch.tensor([2.0])]  # noqa: E731
    other = [torch.tensor([-2.0]), torch.tensor([3.0])]
    a, stats = make(), torch.empty(2, 4)
    call(name, a, other)
    assert [x.item() for x in a] == [1.0, 2.0]
    call(name, a, other, per_tensor=True, stats=stats)
    assert [x.item() for x in a] == [0.0, 2.0]
    assert stats.tolist() == [[-2.0, 4.0, -1.0, 1.0], [6.0, 9.0, 1.0, 0.0]]


@each_project
def test_worked_example_empty_partner(name):
    # Index 1 takes no part: its product would have been positive enough to hide the conflict.
    a, stats = [torch.tensor([1.0]), torch.tensor([9.0])], torch.full((2, 4), math.nan)
    call(name, a, [torch.tensor([-2.0]), torch.empty(0)], per_tensor=True, stats=stats)
    assert [x.item() for x in a] == [0.0, 9.0] and stats.tolist() == [[-2.0, 4.0, -1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]


@each_update
def test_worked_example_update(name):
    # (1, 0) becomes (0.5, 0.5); 1 - 0.5 * 0.5 = 0.75. The third is hidden, the gradients stay.
    param, a = torch.ones(3), torch.tensor([1.0, 0.0, math.nan])
    call(name, [param], [a], [torch.tensor([-1.0, 1.0, math.nan])], [], [torch.tensor([True, True, False])], op=UPDATE, **PLAIN)
    assert param.tolist() == [0.75, 0.75, 1.0] and a[:2].tolist() == [1.0, 0.0]


@each_update
def test_worked_example_update_inverted_zero(name):
    # Trained is what the mask hides: (1, 0) against (-1, 1) again; momentum 0 + projected; the first element is cleared.
    param, buffer = torch.ones(3), torch.tensor([7.0, 0.0, 0.0])
    call(name, [param], [torch.tensor([9.0, 1.0, 0.0])], [torch.tensor([9.0, -1.0, 1.0])], [buffer], [torch.tensor([True, False, False])],
         op=UPDATE, **PLAIN | {"momentum": 0.5}, invert=True, outside="zero")
    assert param.tolist() == [0.0, 0.75, 0.75] and buffer.tolist() == [0.0, 0.5, 0.5]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")       # numpy's, under the Triton interpreter
@each_project
@pytest.mark.parametrize("case", ["nan", "inf", "zero", "negative zero", "eps", "measure only"])
def test_reasons_not_to_project(name, case):
    a, b, eps = [1.0, 2.0, 0.0], [-1.0, -1.0, 3.0], 0.0
    if case in ("nan", "inf"):
        b[2] = math.nan if case == "nan" else -math.inf
        a[2] = 1.0
    elif case == "zero":
        b = [-0.0, 0.0, 0.0]
    elif case == "negative zero":
        a, b = [0.0, 0.0, 0.0], [-1.0, -1.0, -1.0]
    else:
        eps = 11.0 if case == "eps" else math.inf
    a, stats = torch.tensor(a), torch.empty(1, 4)
    before = a.clone()
    call(name, [a], [torch.tensor(b)], eps=eps, stats=stats)
    assert torch.equal(bits(a), bits(before)) and stats[0, 3] == 0
    if case == "measure only":
        torch.testing.assert_close(stats[0, :2], torch.tensor([-3.0, 11.0]))


# ---- agreement ----

@each_project
@each_form
@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_projection_agrees_with_float64(name, dtype, per_tensor, form):
    if name == "triton" and dtype == torch.float64:
        pytest.skip("Triton kernels take fp32, bf16 and fp16")
    a, b = conflicting(SHAPES, dtype)
    b[2] = torch.empty(0, dtype=dtype)
    masks = in_form(random_masks(a, 0.4), form)
    want, want_stats = double(a), torch.empty(len(a) if per_tensor else 1, 4)
    stats = torch.empty_like(want_stats)
    call("reference", want, double(b), masks=masks, per_tensor=per_tensor, stats=want_stats)
    call(name, a, b, masks=masks, per_tensor=per_tensor, stats=stats)
    for x, y in zip(a, want):
        assert_close(x, y, reduction=4099 if dtype == torch.float64 else 1)      # fp32 and half sums are rounded in fp64
    assert torch.equal(stats[:, 3], want_stats[:, 3]) and want_stats[-1, 3] == 1
    torch.testing.assert_close(stats, want_stats, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name, pair, variant, form", UPDATES, ids=str)
def test_update_agrees_with_float64(name, pair, variant, form):
    a, b = conflicting(SHAPES, pair[1])
    b[3] = torch.empty(0, dtype=pair[1])
    params, buffers = ([torch.randn(s).to(pair[0]) for s in SHAPES] for _ in range(2))
    masks = in_form(random_masks(params, 0.4), form)
    want_p, want_v, raw = double(params), double(buffers), [x.clone() for x in a + b]
    call("reference", want_p, double(a), double(b), want_v, masks, op=UPDATE, **SCALARS | variant)
    call(name, params, a, b, buffers, masks, op=UPDATE, **SCALARS | variant)
    for got, want in zip(params + buffers, want_p + want_v):
        assert_close(got, want, reduction=4099 if pair[1] == torch.float64 else 1)
    assert all(torch.equal(x, y) for x, y in zip(a + b, raw))


@each_update
@each_form
@pytest.mark.parametrize("conflict", [False, True])
@pytest.mark.parametrize("per_tensor", [False, True])
def test_update_is_projection_then_masked_sgd(name, form, conflict, per_tensor):
    a, b = conflicting([(257, 3), (5000,), (33,)])
    b = b if conflict else [-x for x in b]
    params, buffers = ([torch.randn_like(x) for x in a] for _ in range(2))
    masks = in_form(random_masks(a, 0.5), form)
    want_p, want_v, projected = ([x.clone() for x in xs] for xs in (params, buffers, a))
    options = {"per_tensor": per_tensor}
    stats, want_stats = (torch.empty(3 if per_tensor else 1, 4) for _ in range(2))
    scaler = {"grad_scale": torch.tensor([8.0]), "found_inf": torch.tensor([0.0])}
    ops.project_conflict_(projected, b, masks=masks, stats=want_stats, **options)
    ops.masked_sgd_(want_p, projected, want_v, masks, **SCALARS, **scaler)
    call(name, params, a, b, buffers, masks, op=UPDATE, stats=stats, **SCALARS, **scaler, **options)
    for got, want in zip(params + buffers, want_p + want_v):
        if name == "cpu":
            assert torch.equal(got, want)
        else:
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(stats, want_stats, rtol=1e-5, atol=1e-4)
    assert (stats[:, 3] == conflict).all()


def test_same_bits_for_every_isa_and_thread_count():
    if not native.available:
        pytest.skip(f"compiled kernels are {native.reason}")
    a, b = conflicting([(70001,), (1 << 20,), (33, 5)])
    masks = random_masks(a, 0.5)
    for op in (PROJECT, UPDATE):
        for per_tensor in (False, True):
            seen = []
            for isa in ("scalar", "avx2", "avx512"):
                for count in (1, 2):
                    try:
                        native.set_isa(isa)
                    except ValueError:
                        continue
                    mine, stats = [x.clone() for x in a], torch.empty(3 if per_tensor else 1, 4)
                    with threads(count):
                        if op == PROJECT:
                            ops.project_conflict_(mine, b, masks=masks, per_tensor=per_tensor, stats=stats)
                        else:
                            ops.project_conflict_sgd_(mine, a, b, [x.clone() for x in a], masks, lr=0.1, momentum=0.9,
                                                      per_tensor=per_tensor, stats=stats)
                    seen.append(mine + [stats])
            native.set_isa("auto")
            assert all(torch.equal(x, y) for other in seen[1:] for x, y in zip(seen[0], other))


def test_every_isa_agrees_on_odd_sizes(isa):
    for dtype in (torch.float32, torch.bfloat16):
        a, b = conflicting(awkward_shapes, dtype)
        masks, want = random_masks(a, 0.4), double(a)
        call("reference", want, double(b), masks=masks, per_tensor=True)
        call("cpu", a, b, masks=masks, per_tensor=True)
        for x, y in zip(a, want):
            assert_close(x, y)


@pytest.mark.parametrize("name", [n for n in each_implementation(PROJECT) if n != "reference"])
def test_layouts(name):
    a = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    b = torch.randn(4, 3, 5, 5) - a.contiguous()
    mask = torch.rand(4, 3, 5, 5) < 0.5
    want, param = double([a])[0], a.clone()
    call("reference", [want], [b.double()], masks=[mask])
    call(name, [param], [a], [b], [], [mask], op=UPDATE, **PLAIN)
    assert_close(param, torch.where(mask, a.double() - 0.5 * want, a.double()))
    call(name, [a], [b], masks=[mask])
    assert_close(a, want)
    with pytest.raises(ValueError, match=r"masks\[0\]: a packed mask goes with a row-major tensor"):
        call(name, [a], [b], masks=[ops.pack_mask(mask)])


@each_update
def test_overflow_tensor_lr_and_empty_partners(name):
    a, b = conflicting([(65,), (7,)])
    params, stats = [torch.ones(65), torch.ones(7)], torch.empty(1, 4)
    call(name, params, a, b, [], [NONE, NONE], op=UPDATE, **PLAIN, found_inf=torch.tensor([1.0]), stats=stats)
    assert all((p == 1).all() for p in params) and stats[0, 0] < 0 and stats[0, 3] == 0
    call(name, params, a, [b[0], torch.empty(0)], [], [NONE, NONE], op=UPDATE, **PLAIN | {"lr": torch.tensor(0.5)})
    projected = [a[0].double()]
    call("reference", projected, [b[0].double()])
    assert_close(params[0], 1 - 0.5 * projected[0])
    assert_close(params[1], 1 - 0.5 * a[1].double())


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_agreement_on_each_device_without_reading_back(device):
    a, b = conflicting(SHAPES)
    params, buffers = ([torch.randn_like(x) for x in a] for _ in range(2))
    masks, want, stats = random_masks(a, 0.4), double([params, a, b, buffers]), torch.empty(1, 4)
    call("reference", *want, masks, op=UPDATE, **SCALARS)
    mine = [[x.to(device) for x in xs] for xs in (params, a, b, buffers)]
    masks, stats = [m.to(device) for m in masks], stats.to(device)
    if device.type == "cuda":
        ops.project_conflict_sgd_(*[[x.clone() for x in xs] for xs in mine], masks, **SCALARS)      # what is built once may wait
        torch.cuda.set_sync_debug_mode("error")
    try:
        ops.project_conflict_sgd_(*mine, masks, stats=stats, **SCALARS)
        ops.project_conflict_(mine[1], mine[2], masks=masks, stats=stats)
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    for got, oracle in zip(mine[0] + mine[3], want[0] + want[3]):
        assert_close(got, oracle)
    assert stats[0, 3] == 1


def test_front_doors_take_none_and_tensor_lr():
    a, b = conflicting([(65,), (7,)])
    params, stats = [torch.nn.Parameter(torch.ones(65)), torch.nn.Parameter(torch.ones(7))], torch.ones(1, 4)
    ops.project_conflict_sgd_(params, a, [b[0], None], [], [None, None], lr=torch.tensor(0.5), stats=stats)
    ops.project_conflict_(a, [b[0], None], masks=[None, None])
    assert torch.equal(params[0].detach(), 1 - 0.5 * a[0]) and stats[0, 3] == 1
    ops.project_conflict_([], [], stats=stats)
    assert not stats.any()


# ---- properties ----

@given(st.integers(1, 300), st.floats(0, 1), st.sampled_from(["bool", "bits", "none"]), st.integers(0, 2**31))
@settings(max_examples=80, deadline=None)
def test_no_conflict_is_left_and_nothing_else_is_touched(n, density, form, seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(n, generator=generator) for _ in range(2))
    mask = torch.rand(n, generator=generator) < density if form != "none" else torch.ones(n, dtype=torch.bool)
    a[~mask] = math.nan
    before, stats = a.clone(), torch.empty(1, 4)
    ops.project_conflict_([a], [b], masks=in_form([mask], form), stats=stats)
    x, y = a[mask].double(), b[mask].double()
    assert torch.equal(bits(a[~mask]), bits(before[~mask]))
    if stats[0, 3]:
        assert before[mask].double() @ y < 0
        assert abs(x @ y) <= 4e-7 * (before[mask].double().norm() * y.norm()) * 4
    else:
        assert torch.equal(bits(a), bits(before)) and not before[mask].double() @ y < -1e-6 * y.norm()


def test_long_sums_are_exact_enough():
    # Naive fp32 would stop counting at 2^24: each product here is 1, three of four with a minus.
    n = (1 << 24) + 4096 * 4
    a, b, stats = torch.ones(n), torch.ones(n).view(-1, 4).mul(torch.tensor([1.0, -1, -1, -1])).view(-1), torch.empty(1, 4)
    ops.project_conflict_([a], [b], eps=math.inf, stats=stats)
    assert stats[0, :2].tolist() == [-n / 2, float(n)]


# ---- citizenship ----

def test_opcheck():
    a, b = conflicting([(5, 3), (4,)])
    params, buffers = ([torch.randn_like(x) for x in a] for _ in range(2))
    mask, sparsekern = [torch.rand(5, 3) < 0.5, NONE], torch.ops.sparsekern
    torch.library.opcheck(sparsekern.project_conflict_.default, (a, b), {"masks": mask, "stats": torch.zeros(1, 4)})
    torch.library.opcheck(sparsekern.project_conflict_sgd_.default, (params, a, b, buffers, mask), SCALARS | {"stats": torch.zeros(1, 4)})
    torch.library.opcheck(sparsekern.project_conflict_sgd_.tensor_lr, (params, a, b, buffers, mask), SCALARS | {"lr": torch.tensor(0.1)})


def test_compiles_whole():
    def step(param, a, b, mask):
        stats = torch.zeros(1, 4)
        ops.project_conflict_sgd_([param], [a], [b], [], [mask], lr=0.1, stats=stats)
        ops.project_conflict_([a], [b], masks=[mask])
        return param * 2, a + 1, stats

    (a,), (b,) = conflicting([(33,)])
    param, mask = torch.randn(33), torch.rand(33) < 0.5
    want = step(param.clone(), a.clone(), b, mask)
    got = torch.compile(step, fullgraph=True)(param.clone(), a.clone(), b, mask)
    assert all(torch.equal(x, y) for x, y in zip(got, want)) and want[2][0, 3] == 1


# ---- misuse ----

@pytest.mark.parametrize("change, error, words", [
    ({"g_j": []}, ValueError, r"project_conflict_: g_j: expected a list of 1 .* got 0"),
    ({"masks": []}, ValueError, r"project_conflict_: masks: expected a list of 1 .* got 0"),
    ({"g_j": [torch.ones(3)]}, ValueError, r"g_j\[0\]: expected shape \[4\], got \[3\]"),
    ({"g_j": [torch.ones(4).double()]}, TypeError, r"g_j\[0\]: expected .*[Ff]loat.* like g_i, got .*"),
    ({"g_i": [torch.ones(8)[::2]]}, ValueError, r"g_i\[0\]: expected a dense tensor"),
    ({"masks": [torch.ones(3, dtype=torch.bool)]}, ValueError, r"masks\[0\]: expected a bool mask of shape \[4\], got \[3\]"),
    ({"masks": [torch.ones(4)]}, TypeError, r"masks\[0\]: expected a bool mask"),
    ({"stats": torch.ones(4)}, ValueError, r"stats: expected a contiguous \[1, 4\] tensor, got shape \[4\]"),
    ({"stats": torch.ones(1, 4).double()}, TypeError, r"stats: expected float32"),
    ({"eps": -1.0}, ValueError, r"eps: expected a number >= 0 .*, got -1.0"),
    ({"eps": math.nan}, ValueError, r"eps: expected a number >= 0"),
])
def test_misuse(change, error, words):
    if not native.available and "dense tensor" in words:
        pytest.skip("the reference takes any layout")
    with pytest.raises(error, match=words):
        ops.project_conflict_(**{"g_i": [torch.ones(4)], "g_j": [torch.ones(4)]} | change)


@pytest.mark.parametrize("change, error, words", [
    ({"g_i": []}, ValueError, r"project_conflict_sgd_: g_i: expected a list of 1 .* got 0"),
    ({"g_j": [torch.ones(3)]}, ValueError, r"project_conflict_sgd_: g_j\[0\]: expected shape \[4\], got \[3\]"),
    ({"g_i": [torch.ones(3)]}, ValueError, r"project_conflict_sgd_: g_i\[0\]: expected shape \[4\], got \[3\]"),
    ({"outside": "drop"}, ValueError, r'outside: expected "keep" or "zero", got'),
    ({"eps": -1.0}, ValueError, r"project_conflict_sgd_: eps"),
    ({"per_tensor": True, "stats": torch.ones(2, 4)}, ValueError, r"stats: expected a contiguous \[1, 4\] tensor, got shape \[2, 4\]"),
])
def test_misuse_update(change, error, words):
    arguments = {"params": [torch.ones(4)], "g_i": [torch.ones(4)], "g_j": [torch.ones(4)]} | {
        "momentum_buffers": [], "masks": [None]} | change
    with pytest.raises(error, match=words):
        ops.project_conflict_sgd_(**arguments, lr=0.1)
