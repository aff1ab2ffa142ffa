"""sparse_conv2d: a convolution that knows only the nonzeros of its weight, and its two gradients."""
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekern import ops
from sparsekern._native import native
from sparsekern.ops import sparse_conv2d, sparse_conv2d_input_grad, sparse_conv2d_weight_grad
from sparsekern.testing import assert_close, double, each_implementation, random_csr, threads

NAMES = ["sparse_conv2d", "sparse_conv2d_input_grad", "sparse_conv2d_weight_grad"]
TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
FORWARD = each_implementation("sparse_conv2d")
IDENTITY = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}

# images, channels, outputs, height, width, kernel, and what differs from the identity: one and sixteen lanes, whole and partial
# vectors and panels, strides with and without remainders, kernels larger than strides and smaller, more padding than kernel.
SHAPES = [
    (1, 3, 5, 7, 9, (3, 3), {"padding": [1, 1]}),
    (2, 2, 3, 5, 32, (3, 3), {"padding": [1, 1]}),
    (3, 4, 17, 6, 33, (3, 5), {"padding": [2, 4], "dilation": [2, 2]}),
    (16, 5, 4, 8, 8, (3, 3), {"padding": [1, 1]}),
    (19, 4, 6, 7, 7, (3, 3), {"padding": [1, 1], "stride": [2, 2]}),
    (33, 6, 18, 9, 5, (2, 3), {"stride": [2, 1], "padding": [1, 0], "groups": 3}),
    (2, 8, 8, 12, 40, (3, 3), {"stride": [2, 2], "padding": [1, 1], "groups": 2}),
    (2, 3, 4, 11, 13, (1, 1), {"stride": [2, 3]}),
    (17, 3, 4, 10, 10, (2, 2), {"stride": [3, 3]}),
    (2, 3, 4, 4, 4, (2, 2), {"padding": [5, 3], "stride": [3, 2], "dilation": [2, 3]}),
    (5, 4, 3, 6, 6, (6, 6), {}),
    (18, 3, 40, 5, 5, (1, 1), {}),
    (2, 2, 2, 1, 1, (1, 1), {"stride": [7, 7], "padding": [3, 3]}),
    (3, 2, 2, 3, 4, (2, 2), {"stride": [2**30, 2**31 - 1]}),
    (2, 3, 20, 6, 16, (1, 1), {}),
    (12, 3, 4, 3, 14, (3, 3), {"padding": [1, 1]}),
    (0, 3, 4, 6, 6, (3, 3), {}),
    (4, 0, 2, 6, 6, (3, 3), {}),
    (4, 3, 0, 6, 6, (3, 3), {}),
]


def call(name, op, *args, **kwargs):
    return ops.implementations(op)[name](*args, **kwargs)


def case(shape, sparsity=0.7, dtype=torch.float64, index64=False):
    """x, pattern, val, bias, grad_y and the keyword arguments of a shape above."""
    images, channels, outputs, height, width, kernel, options = shape
    options = IDENTITY | options
    crow, col, val = random_csr(outputs, channels // options["groups"] * kernel[0] * kernel[1], sparsity, dtype=dtype, index64=index64)
    x, bias = torch.randn(images, channels, height, width).to(dtype), torch.randn(outputs).to(dtype)
    size = [(n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip((height, width), options["padding"], options["dilation"], kernel, options["stride"])]
    return x, crow, col, val, bias, torch.randn(images, outputs, *size).to(dtype), list(kernel), options


def all_three(name, x, crow, col, val, bias, grad_y, kernel, options):
    return [call(name, NAMES[0], x, crow, col, val, bias, kernel, **options),
            call(name, NAMES[1], grad_y, crow, col, val, list(x.shape), kernel, **options),
            call(name, NAMES[2], x, grad_y, crow, col, kernel, **options)]


# ---- worked examples ----

@pytest.mark.parametrize("name", FORWARD)
def test_worked_example(name):
    # One 2 x 3 image, two filters of 1 x 2: [2, .] and [., -1]; the second row of the output is the second row of the image's.
    x = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]])
    crow, col, val = torch.tensor([0, 1, 2], dtype=torch.int32), torch.tensor([0, 1], dtype=torch.int32), torch.tensor([2.0, -1.0])
    y = call(name, "sparse_conv2d", x, crow, col, val, torch.tensor([0.0, 10.0]), [1, 2], **IDENTITY)
    assert y.tolist() == [[[[2, 4], [8, 10]], [[8, 7], [5, 4]]]]
    grad_y = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 3.0]]]])
    dx = call(name, "sparse_conv2d_input_grad", grad_y, crow, col, val, [1, 1, 2, 3], [1, 2], **IDENTITY)
    assert dx.tolist() == [[[[2, 0, 0], [0, 0, -3]]]]
    dval = call(name, "sparse_conv2d_weight_grad", x, grad_y, crow, col, [1, 2], **IDENTITY)
    assert dval.tolist() == [1.0, 18.0]


@pytest.mark.parametrize("name", FORWARD)
def test_worked_example_stride_padding_groups(name):
    # Two groups of one channel, kernel 1 x 1, stride 2, padding 1: only the odd positions of the image are seen, between zeros.
    x = torch.arange(1.0, 19.0).view(1, 2, 3, 3)
    crow, col, val = torch.tensor([0, 1, 2], dtype=torch.int64), torch.tensor([0, 0], dtype=torch.int32), torch.tensor([1.0, 10.0])
    options = {"stride": [2, 2], "padding": [1, 1], "dilation": [1, 1], "groups": 2}
    y = call(name, "sparse_conv2d", x, crow, col, val, None, [1, 1], **options)
    assert y.tolist() == [[[[0, 0, 0], [0, 5, 0], [0, 0, 0]], [[0, 0, 0], [0, 140, 0], [0, 0, 0]]]]
    dx = call(name, "sparse_conv2d_input_grad", torch.ones(1, 2, 3, 3), crow, col, val, [1, 2, 3, 3], [1, 1], **options)
    assert dx.tolist() == [[[[0, 0, 0], [0, 1, 0], [0, 0, 0]], [[0, 0, 0], [0, 10, 0], [0, 0, 0]]]]
    assert call(name, "sparse_conv2d_weight_grad", x, torch.ones(1, 2, 3, 3), crow, col, [1, 1], **options).tolist() == [5.0, 14.0]


@pytest.mark.parametrize("name", FORWARD)
def test_nothing_stored_is_the_bias(name):
    crow, col, val = torch.zeros(4, dtype=torch.int32), torch.empty(0, dtype=torch.int32), torch.empty(0)
    x = torch.randn(2, 3, 5, 5)
    y = call(name, "sparse_conv2d", x, crow, col, val, torch.tensor([1.0, -2.0, 0.5]), [3, 3], **IDENTITY)
    assert torch.equal(y, torch.tensor([1.0, -2.0, 0.5]).view(1, 3, 1, 1).expand(2, 3, 3, 3))
    assert not call(name, "sparse_conv2d", x, crow, col, val, None, [3, 3], **IDENTITY).any()
    assert not call(name, "sparse_conv2d_input_grad", y, crow, col, val, [2, 3, 5, 5], [3, 3], **IDENTITY).any()
    assert call(name, "sparse_conv2d_weight_grad", x, y, crow, col, [3, 3], **IDENTITY).shape == (0,)


# ---- agreement ----

def assert_agree(got, arguments, dtype):
    x, _, _, _, _, grad_y, kernel, options = arguments
    taps = kernel[0] * kernel[1]
    for one, want, reduction in zip(got, all_three("reference", *double(list(arguments[:6])), kernel, options),
                                    (x.shape[1] * taps, grad_y.shape[1] * taps, grad_y[:, :1].numel())):
        assert one.dtype == dtype and one.is_contiguous()
        assert_close(one, want, dtype=dtype, reduction=reduction)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cpu_agrees(isa, shape, dtype):
    arguments = case(shape, dtype=dtype)
    assert_agree(all_three("cpu", *arguments), arguments, dtype)


@pytest.mark.parametrize("sparsity", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("name", FORWARD)
def test_agrees_from_dense_to_empty(name, sparsity):
    for shape in SHAPES[:6]:
        arguments = case(shape, sparsity, torch.float32, index64=True)
        assert_agree(all_three(name, *arguments), arguments, torch.float32)


@pytest.mark.parametrize("name", FORWARD)
def test_strided_inputs(name):
    x, crow, col, val, bias, grad_y, kernel, options = case(SHAPES[4], dtype=torch.float32)
    x, grad_y = x.to(memory_format=torch.channels_last), torch.stack([grad_y, grad_y], -1)[..., 0]
    arguments = x, crow, col, torch.stack([val, val], 1)[:, 0], torch.stack([bias, bias], 1)[:, 0], grad_y, kernel, options
    assert_agree(all_three(name, *arguments), arguments, torch.float32)


@given(st.integers(1, 18), st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
       st.tuples(st.integers(1, 12), st.integers(1, 20)), st.tuples(st.integers(1, 3), st.integers(1, 4)),
       st.tuples(*[st.integers(1, 4)] * 2), st.tuples(*[st.integers(0, 4)] * 2), st.tuples(*[st.integers(1, 3)] * 2), st.floats(0, 1))
@settings(max_examples=150, deadline=None)
def test_any_geometry(images, parts, size, kernel, stride, padding, dilation, sparsity):
    groups, channels, outputs = parts
    if any(n + 2 * p < d * (k - 1) + 1 for n, p, d, k in zip(size, padding, dilation, kernel)):
        return
    options = {"stride": list(stride), "padding": list(padding), "dilation": list(dilation), "groups": groups}
    # Whole numbers: every sum is exact, also where random ones would cancel to less than their own rounding.
    tensors = [(4 * t).round() if t.is_floating_point() else t
               for t in case((images, groups * channels, groups * outputs, *size, kernel, options), sparsity, torch.float32)[:6]]
    got = all_three(FORWARD[-1], *tensors, list(kernel), IDENTITY | options)
    want = all_three("reference", *double(tensors), list(kernel), IDENTITY | options)
    assert all(one.dtype == torch.float32 and torch.equal(one.double(), other) for one, other in zip(got, want, strict=True))


def test_same_bits_for_threads_and_instruction_sets():
    if not native.available:
        pytest.skip(f"compiled kernels are {native.reason}")
    for shape in ((40, 16, 48, 8, 8, (3, 3), {"padding": [1, 1]}), (9, 16, 48, 16, 20, (3, 3), {"padding": [1, 1], "stride": [2, 1]})):
        arguments = case(shape, dtype=torch.float32)
        with threads(1):
            want = all_three("cpu", *arguments)
        try:
            for isa in ("scalar", "avx2", "avx512"):
                try:
                    native.set_isa(isa)
                except ValueError:
                    continue
                for count in (1, 2, 5):
                    with threads(count):
                        assert all(torch.equal(a, b) for a, b in zip(all_three("cpu", *arguments), want)), (isa, count)
        finally:
            native.set_isa("auto")


def test_an_image_does_not_feel_its_batch():
    # Sixteen lanes and one give the same bits in the products: the order of a sum is that of the nonzeros.
    x, crow, col, val, bias, grad_y, kernel, options = case((32, 6, 7, 8, 8, (3, 3), {"padding": [1, 1]}), dtype=torch.float32)
    y = sparse_conv2d(x, crow, col, val, bias, kernel, **options)
    dx = sparse_conv2d_input_grad(grad_y, crow, col, val, x.shape, kernel, **options)
    for i in (0, 15, 31):
        if native.available:
            assert torch.equal(sparse_conv2d(x[i:i + 1], crow, col, val, bias, kernel, **options), y[i:i + 1])
            assert torch.equal(sparse_conv2d_input_grad(grad_y[i:i + 1], crow, col, val, (1, 6, 8, 8), kernel, **options), dx[i:i + 1])


@pytest.mark.parametrize("batch", [2, 16])
def test_what_is_not_stored_does_not_spread(isa, batch):
    # The only nonzero looks one place to the right, so the first column of x reaches nothing and the last output sees padding.
    crow, col, val = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([2], dtype=torch.int32), torch.ones(1)
    x = torch.randn(batch, 2, 3, 5)
    x[:, 0, :, 0], x[:, 1] = math.nan, math.inf
    y = sparse_conv2d(x, crow, col, val, None, (1, 3), padding=(0, 1))
    assert torch.equal(y[:, 0, :, :4], x[:, 0, :, 1:]) and not y[:, 0, :, 4].any()
    grad_y = torch.ones(batch, 1, 3, 5)
    assert torch.isfinite(sparse_conv2d_weight_grad(x, grad_y, crow, col, (1, 3), padding=(0, 1))).all()
    grad_y[:, :, :, 4] = math.nan
    dx = sparse_conv2d_input_grad(grad_y, crow, col, val, x.shape, (1, 3), padding=(0, 1))
    assert torch.isfinite(dx).all() and not dx[:, :, :, 0].any() and not dx[:, 1].any()
    x[0, 0, 1, 2] = math.nan
    assert sparse_conv2d(x, crow, col, val, None, (1, 3), padding=(0, 1)).isnan().sum() == 1
    assert sparse_conv2d_weight_grad(x, torch.ones_like(grad_y), crow, col, (1, 3), padding=(0, 1)).isnan().all()


def test_weight_gradient_takes_any_pattern():
    x, *_, grad_y, kernel, options = case(SHAPES[0], dtype=torch.float32)
    for sparsity in (0.0, 0.5, 0.9):
        crow, col, _ = random_csr(5, 27, sparsity, seed=3)
        arguments = x, crow, col, torch.zeros(len(col)), torch.zeros(5), grad_y, kernel, options
        assert_agree(all_three(FORWARD[-1], *arguments), arguments, torch.float32)


# ---- gradients ----

@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[5][:3] + (5, 5) + SHAPES[5][5:], (2, 2, 3, 5, 6, (2, 2), {"stride": [2, 3], "padding": [1, 2]})],
                         ids=str)
def test_gradcheck(shape):
    x, crow, col, val, bias, _, kernel, options = case((2, *shape[1:]))
    leaves = [t.requires_grad_() for t in (x, val, bias)]
    assert torch.autograd.gradcheck(lambda x, val, bias: sparse_conv2d(x, crow, col, val, bias, kernel, **options), leaves)
    assert torch.autograd.gradgradcheck(lambda x, val, bias: sparse_conv2d(x, crow, col, val, bias, kernel, **options), leaves)


def test_gradients_of_the_gradients():
    x, crow, col, val, _, grad_y, kernel, options = case((2, 2, 3, 5, 5, (3, 3), {"padding": [1, 1], "stride": [2, 2]}))
    for leaf in (x, val, grad_y):
        leaf.requires_grad_()
    assert torch.autograd.gradcheck(lambda g, v: sparse_conv2d_input_grad(g, crow, col, v, x.shape, kernel, **options), (grad_y, val))
    assert torch.autograd.gradcheck(lambda x, g: sparse_conv2d_weight_grad(x, g, crow, col, kernel, **options), (x, grad_y))


def test_only_what_is_asked_for_is_worked_out():
    x, crow, col, val, bias, *_, kernel, options = case(SHAPES[0], dtype=torch.float32)
    y = sparse_conv2d(x, crow, col, val.requires_grad_(), bias, kernel, **options)
    y.sum().backward()
    assert x.grad is None and val.grad.shape == val.shape and bias.grad is None
    with torch.no_grad():
        assert not sparse_conv2d(x, crow, col, val, bias, kernel, **options).requires_grad


def test_autocast():
    x, crow, col, val, bias, grad_y, kernel, options = case(SHAPES[3], dtype=torch.float32)
    for leaf in (x, val, bias):
        leaf.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = sparse_conv2d(x, crow, col, val, bias, kernel, **options)
    assert y.dtype == torch.bfloat16
    half = sparse_conv2d(x.bfloat16(), crow, col, val.bfloat16(), bias.bfloat16(), kernel, **options)
    assert torch.equal(y, half)
    y.backward(grad_y.bfloat16())
    assert all(t.grad.dtype == torch.float32 for t in (x, val, bias))
    want = sparse_conv2d_weight_grad(x.double().detach(), grad_y.double(), crow, col, kernel, **options)
    assert_close(val.grad, want, dtype=torch.bfloat16, reduction=grad_y[:, 0].numel())


# ---- citizenship ----

@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")      # opcheck looks at its own copies
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[6]], ids=str)
def test_opcheck(shape):
    x, crow, col, val, bias, grad_y, kernel, options = case(shape, dtype=torch.float32)
    x, val, bias, grad_y = (t.requires_grad_() for t in (x, val, bias, grad_y))
    torch.library.opcheck(torch.ops.sparsekern.sparse_conv2d.default, (x, crow, col, val, bias, kernel), options)
    torch.library.opcheck(torch.ops.sparsekern.sparse_conv2d_input_grad.default, (grad_y, crow, col, val, list(x.shape), kernel), options)
    torch.library.opcheck(torch.ops.sparsekern.sparse_conv2d_weight_grad.default, (x, grad_y, crow, col, kernel), options)


def test_compiles_whole():
    x, crow, col, val, bias, _, kernel, options = case(SHAPES[0], dtype=torch.float32)
    leaves = [t.requires_grad_() for t in (x, val, bias)]

    def loss(x, val, bias):
        return sparse_conv2d(x.relu(), crow, col, val, bias, kernel, **options).square().sum()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True)):
        value = function(*leaves)
        results.append((value, *torch.autograd.grad(value, leaves)))
    for got, want in zip(results[1], results[0]):
        torch.testing.assert_close(got, want)


# ---- misuse ----

CROW, COL, VAL = torch.tensor([0, 1, 2], dtype=torch.int32), torch.tensor([0, 8], dtype=torch.int32), torch.ones(2)
MISUSE = [
    ({"x": torch.ones(1, 5, 5)}, ValueError, r"sparse_conv2d: x: expected \[N, C, H, W\], got shape \[1, 5, 5\]"),
    ({"x": torch.ones(1, 1, 2, 5)}, ValueError, "expected a kernel that fits into the padded input"),
    ({"x": torch.ones(1, 1, 5, 5, dtype=torch.int64)}, TypeError, "x: expected float32, bfloat16, float16 or float64"),
    ({"val": VAL.double()}, TypeError, r"val: expected .* like x, got .*; convert it with .to\(\)"),
    ({"val": torch.ones(3)}, ValueError, r"val: expected shape \[2\], got \[3\]"),
    ({"bias": torch.ones(3)}, ValueError, r"bias: expected shape \[2\], got \[3\]"),
    ({"kernel_size": [0, 3]}, ValueError, "kernel_size: expected two numbers >= 1"),
    ({"stride": [0, 1]}, ValueError, "stride: expected two numbers >= 1"),
    ({"padding": [-1, 0]}, ValueError, "padding: expected two numbers >= 0"),
    ({"dilation": [1, 0]}, ValueError, "dilation: expected two numbers >= 1"),
    ({"groups": 2}, ValueError, "groups: expected a divisor of 1 input and 2 output channels, got 2"),
    ({"crow": torch.zeros(0, dtype=torch.int32)}, ValueError, r"crow: expected \[O \+ 1\] row pointers"),
]
HOSTILE = [
    ({"col": torch.tensor([0, 9], dtype=torch.int32)}, r"col: expected columns in \[0, 9\), got 9 in row 1"),
    ({"col": torch.tensor([-1, 3], dtype=torch.int32)}, r"col: expected columns in \[0, 9\), got -1 in row 0"),
    ({"crow": torch.tensor([0, 3, 2], dtype=torch.int32)}, "crow: expected row pointers that never fall"),
    ({"crow": torch.tensor([0, 1, 3], dtype=torch.int32)}, "crow: expected the last row pointer"),
    ({"crow": torch.tensor([1, 1, 2], dtype=torch.int32)}, "crow: expected to start at 0"),
    ({"dilation": [2**62, 1]}, "dilation: expected two numbers below 2.31"),
    ({"stride": [1, 2**40]}, "stride: expected two numbers below 2.31"),
    ({"kernel_size": [2**31 - 1, 2**31 - 1], "padding": [2**30, 2**30]}, "kernel_size: expected less than 2.31 weights"),
    ({"padding": [2**30, 0], "x": torch.ones(0, 1, 5, 5), "kernel_size": [1, 3], "stride": [2**31 - 1, 1]}, "col: expected columns"),
]


def misused(name, changes):
    arguments = {"x": torch.ones(1, 1, 5, 5), "crow": CROW, "col": COL, "val": VAL, "bias": None, "kernel_size": [3, 3]} | IDENTITY | changes
    return call(name, "sparse_conv2d", *(arguments.pop(k) for k in ("x", "crow", "col", "val", "bias", "kernel_size")), **arguments)


@pytest.mark.parametrize("changes, error, words", MISUSE, ids=[str(m[2]) for m in MISUSE])
@pytest.mark.parametrize("name", FORWARD)
def test_misuse(name, changes, error, words):
    with pytest.raises(error, match=words):
        misused(name, changes)


@pytest.mark.parametrize("changes, words", HOSTILE, ids=[str(m[1]) for m in HOSTILE])
def test_hostile_patterns_and_geometries_raise(changes, words):
    if not native.available:
        pytest.skip(f"compiled kernels are {native.reason}")
    with pytest.raises(ValueError, match=words):
        misused("cpu", changes)


@pytest.mark.parametrize("name", FORWARD)
def test_misuse_of_the_gradients(name):
    grad_y, x = torch.ones(1, 2, 3, 3), torch.ones(1, 1, 5, 5)
    with pytest.raises(ValueError, match=r"sparse_conv2d_input_grad: grad_y: expected shape \[1, 2, 3, 3\], got \[1, 2, 3, 4\]"):
        call(name, NAMES[1], torch.ones(1, 2, 3, 4), CROW, COL, VAL, [1, 1, 5, 5], [3, 3], **IDENTITY)
    with pytest.raises(TypeError, match="sparse_conv2d_input_grad: val: expected .* like grad_y"):
        call(name, NAMES[1], grad_y, CROW, COL, VAL.half(), [1, 1, 5, 5], [3, 3], **IDENTITY)
    with pytest.raises(ValueError, match="sparse_conv2d_weight_grad: grad_y: expected shape"):
        call(name, NAMES[2], x, grad_y[:, :1], CROW, COL, [3, 3], **IDENTITY)
    with pytest.raises(TypeError, match="sparse_conv2d_weight_grad: grad_y: expected .* like x"):
        call(name, NAMES[2], x, grad_y.double(), CROW, COL, [3, 3], **IDENTITY)


def test_unsorted_columns_are_safe_and_right():
    if not native.available:
        pytest.skip(f"compiled kernels are {native.reason}")
    x, crow, col, val, bias, grad_y, kernel, options = case((20, 40, 3, 8, 8, (3, 3), {"padding": [1, 1]}), 0.5, torch.float32)
    order = torch.cat([torch.arange(a, b).flip(0) for a, b in zip(crow[:-1].tolist(), crow[1:].tolist())])
    arguments = x, crow, col[order], val[order], bias, grad_y, kernel, options
    assert_agree(all_three("cpu", *arguments), arguments, torch.float32)
