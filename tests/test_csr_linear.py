"""csr_linear: a linear layer whose weight and weight gradient are never dense."""
import math

import pytest
import torch

from sparsekern import ops
from sparsekern._native import native
from sparsekern.ops import csr_linear, csr_plan, csr_spmm_t
from sparsekern.testing import assert_close, each_implementation, random_csr, threads

TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
NAMES = [name for name in each_implementation("csr_linear") if name != "triton"]        # Triton's agreement: test_csr_spmm_triton.py
# (rows, cols, sparsity, batch): a column with 0, 16 and 17 nonzeros, batches that do not fill a panel, empty things.
SHAPES = [(37, 53, 0.8, 70), (1, 1, 0.0, 1), (17, 40, 0.0, 32), (130, 17, 0.6, 33), (5, 300, 0.5, 128), (40, 64, 1.0, 8), (0, 5, 0.5, 7),
          (5, 0, 0.5, 7), (9, 11, 0.3, 0), (700, 50, 0.9, 64), (16, 33, 0.0, 7)]
FLAGS = [(True, True, True), (True, False, False), (False, True, False), (False, False, True), (False, False, False)]


def call(op, name, *args):
    return ops.implementations(op)[name](*args)


def make(rows, cols, sparsity, dtype=torch.float32):
    """[crow, col, val, crow_t, row_t, perm] and the dense weight in float64."""
    crow, col, val = random_csr(rows, cols, sparsity, dtype=dtype)
    dense = torch.zeros(rows, cols, dtype=torch.float64)
    of_row = torch.repeat_interleave(torch.arange(rows), crow.diff().long())
    dense[of_row, col.long()] = val.double()
    return [crow, col, val, *csr_plan(crow, col, rows, cols)[1:]], dense, of_row


# ---- worked examples: W = [[1, 0, 2], [0, 0, 0], [3, 0, 0]] ----

CROW, COL, VAL = torch.tensor([0, 2, 2, 3], dtype=torch.int32), torch.tensor([0, 2, 0], dtype=torch.int32), torch.tensor([1.0, 2.0, 3.0])
LAYER = [CROW, COL, VAL, *csr_plan(CROW, COL, 3, 3)[1:]]


@pytest.mark.parametrize("name", NAMES)
def test_worked_example(name):
    x, bias = torch.tensor([[1.0, 7.0, 2.0], [10.0, 7.0, 20.0]]), torch.tensor([0.5, -1.0, 0.0])
    assert call("csr_linear", name, x, *LAYER, bias, 3).tolist() == [[5.5, -1, 3], [50.5, -1, 30]]
    dy = torch.tensor([[1.0, 5.0, 2.0], [0.0, 5.0, 1.0]])
    dx, dval, dbias = call("csr_linear_backward", name, x, dy, *LAYER, True, True, True)
    # dx = dy W; dval at (0, 0): 1*1 + 0*10, (0, 2): 1*2 + 0*20, (2, 0): 2*1 + 1*10.
    assert dx.tolist() == [[7, 0, 2], [3, 0, 0]] and dval.tolist() == [1, 2, 12] and dbias.tolist() == [1, 10, 3]


@pytest.mark.parametrize("name", NAMES)
def test_worked_example_nan_of_an_unused_input_stays_there(name):
    x, dy = torch.tensor([[1.0, math.nan, 2.0]]), torch.tensor([[1.0, math.nan, 1.0]])
    assert call("csr_linear", name, x, *LAYER, None, 3).tolist() == [[5, 0, 3]]
    dx, dval, dbias = call("csr_linear_backward", name, x, dy, *LAYER, True, True, True)
    assert dx.tolist() == [[4, 0, 2]] and dval.tolist() == [1, 2, 1] and dbias[1].isnan()


# ---- agreement ----

def assert_agrees(name, dtype, value_type=None, shapes=SHAPES, order="C"):
    for rows, cols, sparsity, batch in shapes:
        layer, dense, of_row = make(rows, cols, sparsity, value_type or dtype)
        x, dy = torch.randn(batch, cols).to(dtype), torch.randn(batch, rows).to(dtype)
        if order == "F":
            x, dy = x.t().contiguous().t(), dy.t().contiguous().t()
        bias = torch.randn(rows).to(value_type or dtype)
        y = call("csr_linear", name, x, *layer, bias, rows)
        assert y.dtype == dtype and y.is_contiguous()
        assert_close(y, x.double() @ dense.t() + bias.double(), reduction=cols)
        want = (dy.double() @ dense, (dy.double().t() @ x.double())[of_row, layer[1].long()], dy.double().sum(0))
        for flags in FLAGS:
            got = call("csr_linear_backward", name, x, dy, *layer, *flags)
            for one, expected, needed, reduction, kind in zip(got, want, flags, (rows, batch, batch), (dtype, layer[2].dtype, layer[2].dtype)):
                assert one.dtype == kind
                assert_close(one, expected, reduction=reduction) if needed else None
                assert needed or one.numel() == 0


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_cpu_agrees(isa, dtype):
    assert_agrees("cpu", dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_reference_agrees(dtype):
    assert_agrees("reference", dtype)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_float32_values_beside_half_activations(name, dtype):
    assert_agrees(name, dtype, torch.float32, SHAPES[:4])


@pytest.mark.parametrize("name", NAMES)
def test_column_major_and_strided_activations(name):
    assert_agrees(name, torch.float32, shapes=SHAPES[:5], order="F")
    layer, dense, _ = make(30, 40, 0.5)
    wide = torch.randn(50, 130)
    for x in (wide[:20, :40], wide[::2, 5:45], wide[:20, :80:2], wide[0, :40].expand(20, 40)):
        assert_close(call("csr_linear", name, x, *layer, None, 30), x.double() @ dense.t(), reduction=40)


def test_same_bits_for_every_instruction_set_and_thread_count():
    if not native.available:
        pytest.skip(f"compiled kernels are {native.reason}")
    # The third is long enough for several runs of columns on one thread.
    for rows, cols, sparsity, batch in [(301, 700, 0.8, 70), (1500, 100, 0.7, 129), (700, 900, 0.5, 48)]:
        for dtype in TYPES:
            layer, _, _ = make(rows, cols, sparsity, dtype)
            x, dy, bias = torch.randn(batch, cols).to(dtype), torch.randn(batch, rows).to(dtype), torch.randn(rows).to(dtype)
            results = []
            for level, counts in (("scalar", (1,)), ("avx2", (2,)), ("avx512", (1, 2, 3))):
                try:
                    native.set_isa(level)
                except ValueError:
                    continue
                for count in counts:
                    with threads(count):
                        results.append((call("csr_linear", "cpu", x, *layer, bias, rows),
                                        *call("csr_linear_backward", "cpu", x, dy, *layer, True, True, True)))
            native.set_isa("auto")
            assert all(torch.equal(got, want) for result in results[1:] for got, want in zip(result, results[0]))
            assert torch.equal(results[0][1], csr_spmm_t(*layer[3:], layer[2], dy.t(), rows, cols).t())


# ---- gradients ----

def test_gradcheck():
    (crow, col, val, *transposed), _, _ = make(5, 7, 0.5, torch.float64)
    x, val, bias = torch.randn(3, 7, dtype=torch.float64, requires_grad=True), val.requires_grad_(), torch.randn(5).double().requires_grad_()

    def layer(x, val, bias):
        return csr_linear(x, crow, col, val, *transposed, bias, 5)

    assert torch.autograd.gradcheck(layer, (x, val, bias))
    assert torch.autograd.gradgradcheck(layer, (x, val, bias))
    for some in ((x, val.detach()), (x.detach(), val), (x, val)):
        assert torch.autograd.gradgradcheck(lambda x, val: layer(x, val, None) ** 3, some)


def test_leading_dimensions():
    layer, dense, _ = make(5, 7, 0.5)
    for shape in ((7,), (2, 3, 7), (2, 0, 7), (1, 2, 3, 7)):
        x = torch.randn(shape, requires_grad=True)
        y = csr_linear(x, *layer, None, 5)
        assert y.shape == (*shape[:-1], 5)
        assert_close(y, x.double() @ dense.t(), reduction=7)
        y.sum().backward()
        assert_close(x.grad, dense.sum(0).expand(shape), reduction=5)


def test_only_what_is_needed_is_computed():
    (crow, col, val, *transposed), _, _ = make(5, 7, 0.5)
    x, val = torch.randn(3, 7), val.requires_grad_()
    csr_linear(x, crow, col, val, *transposed, None, 5).sum().backward()
    assert x.grad is None and val.grad.shape == val.shape
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        csr_linear(x, crow, col, val, *transposed, None, 5)
    assert max(saved) <= max(x.numel(), val.numel()) < 5 * 7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    (crow, col, val, *transposed), dense, of_row = make(50, 70, 0.5)
    x, val, bias = torch.randn(9, 70, requires_grad=True), val.requires_grad_(), torch.randn(50, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        y = csr_linear(x, crow, col, val, *transposed, bias, 50)
    assert y.dtype == dtype
    assert_close(y, x.detach().to(dtype).double() @ dense.t() + bias.detach().double(), reduction=70)
    incoming = torch.randn_like(y)
    y.backward(incoming)
    assert val.grad.dtype == x.grad.dtype == bias.grad.dtype == torch.float32
    # In float32 all the way: far closer than half precision would be.
    exact = (incoming.double().t() @ x.detach().to(dtype).double())[of_row, col.long()]
    assert_close(val.grad, exact, reduction=9)
    with torch.autocast("cpu", dtype=dtype):
        assert csr_linear(x.double(), crow, col, val.double(), *transposed, None, 50).dtype == torch.float64


# ---- citizenship ----

@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")      # opcheck looks at its own copies
def test_opcheck():
    (crow, col, val, *transposed), _, _ = make(5, 7, 0.5)
    x, val, bias, dy = torch.randn(3, 7, requires_grad=True), val.requires_grad_(), torch.randn(5, requires_grad=True), torch.randn(3, 5)
    for given in (bias, None):
        torch.library.opcheck(torch.ops.sparsekern.csr_linear.default, (x, crow, col, val, *transposed, given, 5))
    for flags in FLAGS[:3]:
        torch.library.opcheck(torch.ops.sparsekern.csr_linear_backward.default, (x, dy.requires_grad_(), crow, col, val, *transposed, *flags))


@pytest.mark.parametrize("half", [False, True])
def test_compiles_whole(half):
    (crow, col, val, *transposed), _, _ = make(5, 7, 0.5)
    x, val, bias = torch.randn(2, 3, 7, requires_grad=True), val.requires_grad_(), torch.randn(5, requires_grad=True)

    def loss(x, val, bias):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            return csr_linear(x.relu(), crow, col, val, *transposed, bias, 5).float().square().sum()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True)):
        value = function(x, val, bias)
        results.append((value, *torch.autograd.grad(value, (x, val, bias))))
    for got, want in zip(results[1], results[0]):
        torch.testing.assert_close(got, want)


# ---- misuse ----

@pytest.mark.parametrize("place, given, error, words", [
    (0, torch.ones(2, 4), ValueError, "csr_linear: crow_t: expected 5 row pointers for 4 rows, got 4"),
    (0, torch.ones(2, 1, 3), ValueError, r"csr_linear: x: expected two dimensions, got shape"),
    (0, torch.ones(2, 3, dtype=torch.int32), TypeError, "csr_linear: x: expected float32, bfloat16, float16 or float64, got"),
    (1, CROW[:3], ValueError, "csr_linear: crow: expected 4 row pointers for 3 rows, got 3"),
    (2, COL + 1, ValueError, r"csr_linear: col: expected columns in \[0, 3\), got 3"),
    (3, VAL[:2], ValueError, r"csr_linear: val: expected shape \[3\], got"),
    (3, VAL.half(), TypeError, "csr_linear: val: expected"),
    (4, CROW[:3], ValueError, "csr_linear: crow_t: expected 4 row pointers for 3 rows, got 3"),
    (5, COL + 1, ValueError, r"csr_linear: row_t: expected columns in \[0, 3\), got 3"),
    (6, torch.tensor([0, 1, 3], dtype=torch.int32), ValueError, r"csr_linear: perm: expected positions in \[0, 3\), got 3 at 2"),
    (7, torch.ones(2), ValueError, r"csr_linear: bias: expected shape \[3\], got"),
])
@pytest.mark.parametrize("name", NAMES)
def test_misuse(name, place, given, error, words):
    arguments = [torch.ones(2, 3), *LAYER, torch.ones(3), 3]
    arguments[place] = given
    with pytest.raises(error, match=words):
        call("csr_linear", name, *arguments)


@pytest.mark.parametrize("name", NAMES)
def test_misuse_of_the_backward_pass(name):
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"csr_linear_backward: grad_y: expected shape \[2, 3\], got"):
        call("csr_linear_backward", name, x, torch.ones(2, 4), *LAYER, True, True, True)
    with pytest.raises(TypeError, match="csr_linear_backward: grad_y: expected .* like x, got"):
        call("csr_linear_backward", name, x, torch.ones(2, 3).double(), *LAYER, True, True, True)


def test_misuse_of_the_front_door():
    with pytest.raises(ValueError, match=r"csr_linear: x: expected shape \[..., in\], got a scalar"):
        csr_linear(torch.ones(()), *LAYER, None, 3)
