"""activity: sums of magnitudes and of signed values, for features and for the taps of a convolution, without unfolding."""
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from sparsekern import ops
from sparsekern._native import native
from sparsekern.ops import activity
from sparsekern.ops._philox import random_signs
from sparsekern.testing import assert_close, each_implementation, threads

EACH = pytest.mark.parametrize("name", each_implementation("activity"))
TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SEED = torch.tensor(77)
# kernel, stride, padding, dilation: usual, strided, uneven, larger than the input, padding that whole taps lie in, 1 x 1
WINDOWS = [((3, 3), (1, 1), (1, 1), (1, 1)), ((3, 3), (2, 2), (1, 1), (1, 1)), ((5, 2), (1, 3), (2, 4), (2, 1)), ((7, 7), (2, 2), (3, 3), (1, 1)),
           ((3, 3), (1, 1), (9, 9), (4, 3)), ((1, 1), (2, 1), (0, 0), (1, 1)), ((2, 3), (1, 2), (0, 1), (3, 1))]
IMAGES = [(2, 3, 9, 11), (70, 2, 8, 8), (1, 17, 32, 33), (3, 1, 70, 64), (5, 20, 1, 4)]


def call(name, *args, **kwargs):
    return ops.implementations("activity")[name](*args, **kwargs)


def window(kernel, stride=(1, 1), padding=(0, 0), dilation=(1, 1)):
    return {"kernel_size": list(kernel), "stride": list(stride), "padding": list(padding), "dilation": list(dilation)}


def fits(shape, kernel, stride, padding, dilation):
    return all(shape[2 + i] + 2 * padding[i] >= dilation[i] * (kernel[i] - 1) + 1 for i in range(2))


def assert_agrees(name, x, **options):
    got, want = call(name, x, **options), call("reference", x.double(), **options)
    assert got.dtype == (torch.float64 if x.dtype == torch.float64 else torch.float32)
    assert_close(got, want, reduction=4096)


# ---- worked examples ----

@EACH
def test_magnitudes_by_hand(name):
    x = torch.tensor([[1.0, -2.0, 0.5], [-3.0, 4.0, 0.0]])
    assert call(name, x).tolist() == [4.0, 6.0, 0.5]
    assert call(name, x.view(2, 1, 1, 3)).tolist() == [4.0, 6.0, 0.5]
    assert call(name, x[0]).tolist() == [1.0, 2.0, 0.5]


@EACH
def test_signs_by_hand(name):
    # Seed 0, block 0 of the signs: the low bits of the first word give the first signs.
    signs = random_signs(torch.tensor(0), 0, 5).tolist()
    x = torch.tensor([[1.0, 100.0], [2.0, 200.0], [4.0, 400.0], [8.0, 800.0]])
    for offset in (0, 1):
        want = sum(s * v for s, v in zip(signs[offset:], (1, 2, 4, 8)))
        assert call(name, x, signed=True, seed=torch.tensor(0), offset=offset).tolist() == [want, 100 * want]


@EACH
def test_taps_by_hand(name):
    # 1 2 3 under a window of 2 with padding 1: tap 0 sees _ 1 2 3, tap 1 sees 1 2 3 _; with stride 2, _ 2 and 1 3.
    x = torch.tensor([[[[1.0, -2.0, 3.0]]]])
    assert call(name, x, **window((1, 2), (1, 1), (0, 1))).tolist() == [6.0, 6.0]
    assert call(name, x, **window((1, 2), (1, 2), (0, 1))).tolist() == [2.0, 4.0]
    signs = random_signs(SEED, 0, 4).tolist()
    assert call(name, x, signed=True, seed=SEED, **window((1, 2), (1, 1), (0, 1))).tolist() == \
        [signs[1] - 2 * signs[2] + 3 * signs[3], signs[0] - 2 * signs[1] + 3 * signs[2]]


@EACH
def test_against_unfold(name):
    few = name == "triton"                                                        # its interpreter takes its time
    for shape, given in itertools.product(IMAGES[:1] if few else IMAGES, WINDOWS[:3] if few else WINDOWS):
        if not fits(shape, *given):
            continue
        x, kernel = torch.randn(shape, dtype=torch.float64), given[0]
        columns = F.unfold(x, kernel, stride=given[1], padding=given[2], dilation=given[3])             # [N, C * R * S, OH * OW]
        torch.testing.assert_close(call(name, x, **window(*given)), columns.abs().sum((0, 2)))
        sign = random_signs(SEED, 5, columns.shape[0] * columns.shape[2]).view(len(x), 1, -1)
        torch.testing.assert_close(call(name, x, signed=True, seed=SEED, offset=5, **window(*given)), (columns * sign).sum((0, 2)))


# ---- agreement ----

@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_cpu_agrees_on_features(isa, dtype, signed):
    options = {"signed": signed, "seed": SEED, "offset": 10**6 + 3}
    for shape in [(5, 3), (600, 1500), (1, 7), (7, 1), (2, 3, 17), (2, 2, 2, 2, 33), (0, 4), (4, 0), (9,), (700, 33), (257, 64)]:
        assert_agrees("cpu", torch.randn(shape).to(dtype), **options)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_cpu_agrees_on_strides(isa, dtype, signed):
    y, options = torch.randn(3, 5, 6, 7).to(dtype), {"signed": signed, "seed": SEED}
    for x in (y.permute(0, 2, 3, 1), y[:, ::2].permute(0, 2, 3, 1), y.to(memory_format=torch.channels_last).permute(0, 2, 3, 1),
              y[:, :, :, ::2].permute(0, 2, 3, 1), y[:1].permute(0, 2, 3, 1), y[:, :, 1:].permute(0, 2, 3, 1), torch.randn(50, 90).to(dtype).t(),
              y.permute(3, 0, 1, 2), y[..., :1].expand(3, 5, 6, 20), torch.randn(70, 2, 9000).to(dtype).permute(0, 2, 1)):
        assert_agrees("cpu", x, **options)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_cpu_agrees_on_windows(isa, dtype, signed):
    for shape, given in itertools.product(IMAGES, WINDOWS):
        if fits(shape, *given):
            assert_agrees("cpu", torch.randn(shape).to(dtype), signed=signed, seed=SEED, offset=12, **window(*given))
    x = torch.randn(3, 4, 8, 9).to(dtype)
    for view in (x.to(memory_format=torch.channels_last), x[:, ::2], x.transpose(2, 3)):
        assert_agrees("cpu", view, signed=signed, seed=SEED, **window((3, 3), padding=(1, 1)))


def test_same_bits_for_every_isa_and_thread_count():
    if not native.available:
        pytest.skip(f"compiled kernels are {native.reason}")
    x, rows = torch.randn(70, 5, 17, 19), torch.randn(1000, 1100)
    cases = [(rows, {}), (x.permute(0, 2, 3, 1), {}), (x, window((3, 3), (2, 1), (1, 1)))]
    seen = []
    names = ["scalar", "avx2", "avx512"]
    try:
        for isa in names[:names.index(native.set_isa("auto")) + 1]:
            native.set_isa(isa)
            for count in (1, 2, 3):
                with threads(count):
                    seen.append([activity(x, signed=signed, seed=SEED, **options) for x, options in cases for signed in (False, True)])
    finally:
        native.set_isa("auto")
    assert all(torch.equal(a, b) for other in seen[1:] for a, b in zip(seen[0], other))


def test_layouts_give_close_results():
    x = torch.randn(4, 6, 10, 12)
    for options in ({}, {"signed": True, "seed": 3}):
        want = activity(x, kernel_size=1, **options)
        torch.testing.assert_close(activity(x.permute(0, 2, 3, 1), **options), want)
        torch.testing.assert_close(activity(x.permute(0, 2, 3, 1).contiguous(), **options), want)


@EACH
def test_long_sums_keep_their_digits(name):
    # A plain fp32 sum of this many equal numbers is off by more than a percent.
    x = torch.full((1, 2**24), 0.1).t() if name != "triton" else torch.full((2**14, 1), 0.1)
    torch.testing.assert_close(call(name, x).item(), 0.1 * x.numel(), rtol=1e-5, atol=0)


# ---- properties ----

def test_batches_add_up():
    x, seed = torch.randn(300, 50), 5
    for cut in (1, 128, 200):
        parts = activity(x[:cut], signed=True, seed=seed) + activity(x[cut:], signed=True, seed=seed, offset=cut)
        torch.testing.assert_close(parts, activity(x, signed=True, seed=seed))
    images, given = torch.randn(6, 3, 8, 8), {"signed": True, "seed": seed, "kernel_size": 3, "padding": 1}
    parts = activity(images[:2], **given) + activity(images[2:], offset=2 * 64, **given)
    torch.testing.assert_close(parts, activity(images, **given))


def assert_unbiased(inputs, outputs, gradient, seeds=4000):
    """The mean over seeds of the product of signed sums against the gradient, within five of its own standard errors."""
    estimates = torch.stack([torch.outer(outputs(seed), inputs(seed)).double() for seed in range(seeds)])
    error = (estimates.mean(0) - gradient) / (estimates.std(0) / seeds**0.5)
    assert error.abs().max() < 5, error.abs().max()
    assert (estimates.mean(0) - gradient).abs().max() < 0.15 * estimates.std(0).max()       # and the bound says something


def test_product_of_signed_sums_estimates_the_gradient_of_a_linear_layer():
    h, delta = torch.randn(24, 5), torch.randn(24, 4)
    assert_unbiased(lambda seed: activity(h, signed=True, seed=seed), lambda seed: activity(delta, signed=True, seed=seed),
                    delta.double().t() @ h.double())


def test_product_of_signed_sums_estimates_the_gradient_of_a_convolution():
    x, weight = torch.randn(2, 2, 5, 5), torch.randn(3, 2, 3, 3, requires_grad=True)
    delta = torch.randn(2, 3, 3, 3)
    (gradient,) = torch.autograd.grad(F.conv2d(x, weight, stride=2, padding=1), weight, delta)
    assert_unbiased(lambda seed: activity(x, signed=True, seed=seed, kernel_size=3, stride=2, padding=1),
                    lambda seed: activity(delta.permute(0, 2, 3, 1), signed=True, seed=seed), gradient.flatten(1).double())


def test_product_of_activities_bounds_the_gradient():
    x, weight = torch.randn(4, 3, 6, 6), torch.randn(5, 3, 3, 3, requires_grad=True)
    delta = torch.randn(4, 5, 6, 6)
    (gradient,) = torch.autograd.grad(F.conv2d(x, weight, padding=1), weight, delta)
    bound = torch.outer(activity(delta.permute(0, 2, 3, 1)), activity(x, kernel_size=3, padding=1))
    assert (gradient.flatten(1).abs() <= bound * 1.00001).all()


# ---- hostile ----

@pytest.mark.parametrize("signed", [False, True])
@EACH
def test_nan_and_infinity_reach_the_taps_that_see_them_and_no_other(name, signed):
    x = torch.randn(2, 3, 6, 6)
    x[0, 0, 0, 0], x[1, 1, 3, 3], x[1, 2, 5, 5] = math.nan, math.inf, -math.inf
    options = {"signed": signed, "seed": SEED} | window((3, 3))
    got, want = call(name, x, **options), call("reference", x.double(), **options)
    assert_close(got, want, reduction=72)
    assert got.view(3, 9).isfinite().sum(1).tolist() == [8, 0, 8]
    rows = call(name, x.permute(0, 2, 3, 1), signed=signed, seed=SEED)
    assert rows[0].isnan() and rows[1:].isinf().all()


@EACH
def test_nothing_there(name):
    for shape in ((0, 3, 4, 4), (2, 0, 4, 4)):
        for signed in (False, True):
            out = call(name, torch.ones(shape), signed=signed, seed=SEED, **window((3, 3), padding=(1, 1)))
            assert out.tolist() == [0.0] * (shape[1] * 9)
    assert call(name, torch.ones(2, 3, 1, 1), **window((2, 2))).tolist() == [0.0] * 12         # an output of 0 x 0
    assert call(name, torch.ones(0, 3)).tolist() == [0.0] * 3 and call(name, torch.ones(3, 0)).shape == (0,)


# ---- citizenship ----

@pytest.mark.parametrize("options", [{}, {"signed": True, "seed": SEED, "offset": 3}, {"kernel_size": [3, 3], "padding": [1, 1]}], ids=str)
def test_opcheck(options):
    torch.library.opcheck(torch.ops.sparsekern.activity.default, (torch.randn(2, 3, 5, 4),), options)


def test_compiles_whole():
    def step(x, seed):
        return activity(x * 2, kernel_size=3) + activity(x, signed=True, seed=seed, kernel_size=3), activity(x.permute(0, 2, 3, 1))

    arguments = torch.randn(2, 3, 5, 4), torch.tensor(3)
    for got, want in zip(torch.compile(step, fullgraph=True)(*arguments), step(*arguments)):
        torch.testing.assert_close(got, want)


# ---- misuse ----

@pytest.mark.parametrize("x, options, error, words", [
    (torch.ones(3, dtype=torch.int64), {}, TypeError, "x: expected float32, bfloat16, float16 or float64, got"),
    (torch.tensor(1.0), {}, ValueError, r"x: expected \[\.\.\., features\], got a scalar"),
    (torch.ones(3, 2), {"signed": True}, ValueError, "seed: expected an int64 tensor with signed=True, got None"),
    (torch.ones(3, 2), {"signed": True, "seed": torch.tensor(1.0)}, TypeError, "seed: expected int64, got"),
    (torch.ones(3, 2), {"signed": True, "seed": torch.tensor([1, 2])}, ValueError, r"seed: expected one number, got shape \[2\]"),
    (torch.ones(3, 2), {"offset": -1}, ValueError, r"offset: expected a number from 0 to 2\^62, got -1"),
    (torch.ones(3, 2), {"offset": 2**63 - 1}, ValueError, r"offset: expected a number from 0 to 2\^62, got 9223372036854775807"),
    (torch.ones(3, 2), {"kernel_size": [1, 1]}, ValueError, r"x: expected \[N, C, H, W\] with kernel_size, got shape \[3, 2\]"),
    (torch.ones(1, 1, 4, 4), {"kernel_size": [3]}, ValueError, r"kernel_size: expected two numbers >= 1, got \[3\]"),
    (torch.ones(1, 1, 4, 4), {"kernel_size": [3, 0]}, ValueError, r"kernel_size: expected two numbers >= 1, got \[3, 0\]"),
    (torch.ones(1, 1, 4, 4), {"kernel_size": [3, 3], "stride": [0, 1]}, ValueError, r"stride: expected two numbers >= 1, got \[0, 1\]"),
    (torch.ones(1, 1, 4, 4), {"kernel_size": [3, 3], "padding": [-1, 1]}, ValueError, r"padding: expected two numbers >= 0, got \[-1, 1\]"),
    (torch.ones(1, 1, 4, 4), {"kernel_size": [3, 3], "dilation": [1, 0]}, ValueError, r"dilation: expected two numbers >= 1, got \[1, 0\]"),
    (torch.ones(1, 1, 4, 4), {"kernel_size": [6, 3]}, ValueError,
     r"kernel_size: expected a window that fits the padded input \[4, 4\], got an output of \[-1, 2\]"),
])
@EACH
def test_misuse(name, x, options, error, words):
    with pytest.raises(error, match="activity: " + words):
        call(name, x, **options)


def test_front_door_takes_single_numbers():
    x = torch.randn(2, 3, 9, 9)
    want = activity(x, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(2, 2), signed=True, seed=torch.tensor(4))
    assert torch.equal(activity(x, kernel_size=3, stride=2, padding=1, dilation=2, signed=True, seed=4), want)
