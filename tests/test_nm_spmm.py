"""nm_pack and nm_spmm: what is kept comes back bit for bit, sums over stored elements only, the same bits everywhere."""
import importlib
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekern import ops
from sparsekern._native import native
from sparsekern.ops import nm_mask, nm_pack, nm_spmm
from sparsekern.ops._remember import Remembered
from sparsekern.ops.nm_spmm import nm_columns
from sparsekern.testing import assert_close, each_implementation, threads

SPMM = [name for name in each_implementation("nm_spmm") if name != "triton"]           # Triton's agreement: test_nm_spmm_triton.py
TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# (rows, cols, n, m, v, N): vectors, what does not fill a panel or a tile, all groups sizes, nothing at all.
CASES = [(37, 52, 1, 4, 1, 70), (1, 4, 2, 4, 1, 1), (16, 64, 2, 8, 1, 16), (130, 48, 1, 16, 1, 33), (32, 70, 3, 7, 4, 48), (40, 64, 1, 64, 5, 20),
         (24, 36, 3, 3, 3, 31), (6, 33, 1, 33, 2, 64), (5, 30, 5, 10, 1, 100), (0, 8, 2, 4, 1, 7), (5, 0, 2, 4, 1, 7), (9, 12, 0, 4, 1, 5),
         (9, 12, 2, 4, 3, 0), (64, 1280, 1, 64, 16, 64)]


def call(op, name, *args, **kwargs):
    return ops.implementations(op)[name](*args, **kwargs)


def make(rows, cols, n, m, v=1, dtype=torch.float32):
    """A dense matrix of which n of m columns are kept in every v rows."""
    x = torch.randn(rows, cols)
    if x.numel():
        kept = nm_mask(torch.rand(rows // v, cols), n, m).repeat_interleave(v, 0)
        x = torch.where(kept, x, 0.0)
    return x.to(dtype)


def bits(tensor):
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def unpack(values, index, n, m, cols, v=1):
    return torch.zeros(values.shape[0], cols, dtype=values.dtype).scatter_(1, nm_columns(index, n, m, v).long(), values)


# ---- worked examples ----
#     [0 5 0 7 | 0 0 0 2]   1: positions 1, 3 and 3 with the first zero, 0
# W = [0 0 0 0 | 3 4 0 0]   nothing: the first two zeros
W = torch.tensor([[0.0, 5, 0, 7, 0, 0, 0, 2], [0, 0, 0, 0, 3, 4, 0, 0]])
VALUES, INDEX = torch.tensor([[5.0, 7, 0, 2], [0, 0, 3, 4]]), torch.tensor([[1, 3, 0, 3], [0, 1, 0, 1]], dtype=torch.uint8)


@pytest.mark.parametrize("name", each_implementation("nm_pack"))
def test_worked_example_pack(name):
    values, index = call("nm_pack", name, W, 2, 4)
    assert torch.equal(values, VALUES) and torch.equal(index, INDEX) and index.dtype == torch.uint8
    # Two rows share their columns: of the first group 1 and 3, of the second 0, 1 and 3 would be three; without the last they fit.
    values, index = call("nm_pack", name, W[:, [0, 1, 2, 3, 4, 5, 6, 6]], 2, 4, v=2)
    assert index.tolist() == [[1, 3, 0, 1]] and values.tolist() == [[5, 7, 0, 0], [0, 0, 3, 4]]


@pytest.mark.parametrize("name", SPMM)
def test_worked_example_product(name):
    b = torch.arange(8.0)[:, None] * torch.tensor([1.0, 10.0])
    assert call("nm_spmm", name, VALUES, INDEX, b, 2, 4, 8).tolist() == [[40, 400], [32, 320]]
    assert call("nm_spmm", name, VALUES, INDEX, b, 2, 4, 8, bias=torch.tensor([0.5, -1.0])).tolist() == [[40.5, 400.5], [31, 319]]
    # Both rows take their columns from the first index row: 5 * 1 + 7 * 3 + 0 + 2 * 7 and 3 * 4 + 4 * 7.
    assert call("nm_spmm", name, VALUES, INDEX[:1], b, 2, 4, 8, v=2)[:, 0].tolist() == [40, 40]


@pytest.mark.parametrize("name", SPMM)
def test_worked_example_only_stored_elements_carry_nan_and_inf(name):
    b = torch.ones(8, 1)
    b[2], b[6] = math.nan, math.inf
    assert call("nm_spmm", name, VALUES, INDEX, b, 2, 4, 8).flatten().tolist() == [14, 7]
    b[0] = math.inf                                                     # a stored zero times inf, in the second row
    got = call("nm_spmm", name, VALUES, INDEX, b, 2, 4, 8).flatten()
    assert got[0] == 14 and got[1].isnan()


# ---- agreement ----

@pytest.mark.parametrize("name", each_implementation("nm_pack"))
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_2_4_pattern_comes_back(name, dtype):
    """All subsets of up to two places with all kinds of values, bit for bit; a -0.0 that is not stored comes back as +0."""
    kinds = torch.tensor([1.5, -2.0, math.nan, math.inf, -math.inf, 2.0**-14]).to(dtype)
    rows = []
    for places in itertools.chain.from_iterable(itertools.combinations(range(4), k) for k in range(3)):
        for chosen in itertools.product(kinds, repeat=len(places)):
            row = torch.zeros(4, dtype=dtype)
            for place, value in zip(places, chosen):
                row[place] = value
            rows.append(row)
    x = torch.stack(rows)
    values, index = call("nm_pack", name, x, 2, 4)
    assert torch.equal(bits(unpack(values, index, 2, 4, 4)), bits(x))
    assert (index[:, 0] < index[:, 1]).all()
    values, index = call("nm_pack", name, torch.where(x == 0, -0.0, x), 2, 4)
    assert torch.equal(bits(unpack(values, index, 2, 4, 4).abs()), bits(x.abs())) and values.signbit()[0].all()


def test_a_million_groups_come_back():
    x = torch.randn(2000, 2000)
    x = torch.where(nm_mask(x, 2, 4), x, 0.0)
    assert torch.equal(unpack(*nm_pack(x, 2, 4), 2, 4, 2000), x)


def test_pack_agrees_with_the_reference():
    if "cpu" not in each_implementation("nm_pack"):
        pytest.skip(f"compiled kernels are {native.reason}")
    for (rows, cols, n, m, v, _), dtype in itertools.product(CASES, TYPES):
        x = make(rows, cols, n, m, v, dtype)
        x[torch.rand(x.shape) < 0.3] = 0.0
        for view in (x, x.t().contiguous().t()):
            got, want = call("nm_pack", "cpu", view, n, m, v=v), call("nm_pack", "reference", view, n, m, v=v)
            assert all(torch.equal(a, b) for a, b in zip(got, want)) and got[0].dtype == dtype
        assert torch.equal(unpack(*got, n, m, cols, v), x)


def assert_agrees(name, dtype, value_type=None, cases=CASES):
    for rows, cols, n, m, v, width in cases:
        x = make(rows, cols, n, m, v, value_type or dtype)
        values, index = nm_pack(x, n, m, v=v)
        b, bias = torch.randn(cols, width).to(dtype), torch.randn(rows).to(value_type or dtype)
        got = call("nm_spmm", name, values, index, b, n, m, cols, v=v, bias=bias)
        assert got.dtype == dtype and got.is_contiguous()
        assert_close(got, x.double() @ b.double() + bias.double()[:, None], reduction=max(cols // m * n, 1))
        assert_close(call("nm_spmm", name, values, index, b, n, m, cols, v=v), x.double() @ b.double(), reduction=max(cols // m * n, 1))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_cpu_agrees(isa, dtype):
    assert_agrees("cpu", dtype)


@pytest.mark.parametrize("name", [name for name in SPMM if name != "cpu"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_agrees(name, dtype):
    assert_agrees(name, dtype)


@pytest.mark.parametrize("name", SPMM)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_float32_values_beside_half_operands(name, dtype):
    assert_agrees(name, dtype, torch.float32, CASES[:5])


@pytest.mark.parametrize("name", SPMM)
def test_strided_operands(name):
    x = make(45, 64, 2, 8)
    values, index = nm_pack(x, 2, 8)
    wide = torch.randn(130, 150)
    for b in (wide[:64, :48], wide[:64, 3:52], wide[:80, :64].t(), wide[:128:2, :50], wide[:64, :100:2], wide[0, :64, None].expand(64, 20)):
        for dtype in (torch.float32, torch.bfloat16):
            got = call("nm_spmm", name, values.t().contiguous().t().to(dtype), index.t().contiguous().t(), b.to(dtype), 2, 8, 64)
            assert_close(got, x.to(dtype).double() @ b.to(dtype).double(), reduction=16)


def test_same_bits_for_every_instruction_set_and_thread_count():
    if not native.available:
        pytest.skip(f"compiled kernels are {native.reason}")
    for rows, cols, n, m, v, width in [(301, 704, 1, 8, 1, 100), (150, 1504, 1, 16, 2, 33), (400, 6400, 1, 64, 1, 64), (40, 64, 2, 4, 1, 160),
                                       (1180, 1600, 1, 8, 4, 95)]:
        for dtype in TYPES:
            values, index = nm_pack(make(rows, cols, n, m, v, dtype), n, m, v=v)
            b = torch.randn(cols, width).to(dtype)
            results = []
            for level, counts in (("scalar", (1,)), ("avx2", (2,)), ("avx512", (1, 2, 3))):
                try:
                    native.set_isa(level)
                except ValueError:
                    continue
                for count in counts:
                    with threads(count):
                        results.append(nm_spmm(values, index, b, n, m, cols, v=v))
            native.set_isa("auto")
            assert all(torch.equal(result, results[0]) for result in results[1:])


# ---- properties ----

@given(st.integers(1, 64), st.floats(0, 1), st.integers(1, 4), st.integers(1, 6), st.integers(0, 5), st.sampled_from(TYPES), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_packing_loses_nothing(m, fraction, groups, bands, v, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    n, v = round(fraction * m), max(v, 1)
    kept = nm_mask(torch.rand(bands, groups * m, generator=generator), n, m).repeat_interleave(v, 0)
    x = torch.where(kept, torch.randint(-2, 3, kept.shape, generator=generator), 0).to(dtype)
    values, index = nm_pack(x, n, m, v=v)
    assert torch.equal(unpack(values, index, n, m, groups * m, v), x)
    if n > 1:
        assert (index.view(bands, groups, n).int().diff(dim=-1) > 0).all()
    b = torch.randint(-3, 4, (groups * m, 9), generator=generator).to(dtype)
    assert torch.equal(nm_spmm(values, index, b, n, m, groups * m, v=v), x @ b)          # small whole numbers: exact
    if v > 1:                                                          # sharing columns saves index, and changes nothing else
        assert torch.equal(nm_spmm(values, index.repeat_interleave(v, 0), b, n, m, groups * m), x @ b)


def test_rows_and_columns_of_the_result_stand_alone():
    values, index = nm_pack(make(60, 128, 1, 8), 1, 8)
    b = torch.randn(128, 70)
    whole, order = nm_spmm(values, index, b, 1, 8, 128), torch.randperm(60)
    assert torch.equal(nm_spmm(values[order], index[order], b, 1, 8, 128), whole[order])
    assert torch.equal(nm_spmm(values, index, b[:, 13:], 1, 8, 128), whole[:, 13:])


# ---- gradients ----

@pytest.mark.parametrize("v", [1, 3])
def test_gradcheck(v):
    values, index = nm_pack(make(6, 12, 2, 4, v, torch.float64), 2, 4, v=v)
    inputs = [t.requires_grad_() for t in (values, torch.randn(12, 5).double(), torch.randn(6).double())]

    def product(values, b, bias):
        return nm_spmm(values, index, b, 2, 4, 12, v=v, bias=bias)

    assert torch.autograd.gradcheck(product, inputs) and torch.autograd.gradgradcheck(product, inputs)


def test_gradients_are_those_of_the_dense_product():
    x = make(20, 48, 2, 8)
    values, index = nm_pack(x, 2, 8)
    values.requires_grad_()
    b, incoming = torch.randn(48, 33, requires_grad=True), torch.randn(20, 33)
    d_values, d_b = torch.autograd.grad(nm_spmm(values, index, b, 2, 8, 48), (values, b), incoming)
    dense = (incoming @ b.t()).gather(1, nm_columns(index, 2, 8).long())
    assert_close(d_values, dense, reduction=33)
    assert_close(d_b, x.t() @ incoming, reduction=20)


def test_gradients_have_the_types_of_their_inputs():
    values, index = nm_pack(make(6, 12, 2, 4), 2, 4)
    leaves = [values.requires_grad_(), torch.randn(12, 4).bfloat16().requires_grad_(), torch.randn(6, requires_grad=True)]
    nm_spmm(leaves[0], index, leaves[1], 2, 4, 12, bias=leaves[2]).sum().backward()
    assert [leaf.grad.dtype for leaf in leaves] == [torch.float32, torch.bfloat16, torch.float32] and leaves[2].grad.tolist() == [4.0] * 6
    with torch.no_grad():
        assert not nm_spmm(leaves[0], index, leaves[1], 2, 4, 12).requires_grad


def test_the_pattern_of_the_gradients_is_made_once_and_again_after_an_edit(monkeypatch):
    module, made = importlib.import_module("sparsekern.ops.nm_spmm"), []
    plain = module.transposed
    monkeypatch.setattr(module, "transposed", lambda *given: made.append(1) or plain(*given))
    x = make(20, 48, 2, 8)
    values, index = nm_pack(x, 2, 8)
    b, incoming = torch.randn(48, 33, requires_grad=True), torch.randn(20, 33)

    def assert_gradient(values, index, patterns, v=1):
        d_b, = torch.autograd.grad(nm_spmm(values, index, b, 2, 8, 48, v=v), b, incoming)
        assert_close(d_b, unpack(values, index, 2, 8, 48, v).t().double() @ incoming.double(), reduction=20)
        assert len(made) == patterns

    assert_gradient(values, index, 1)
    assert_gradient(values * 2, index, 1)
    index[0, :2] = torch.tensor([6, 7], dtype=torch.uint8)
    assert_gradient(values, index, 2)
    assert_gradient(values, index, 2)
    index.data = index.flip(0)
    assert_gradient(values, index, 3)
    assert_gradient(values, index.clone(), 4)
    shared = index[:10].clone()
    assert_gradient(values, shared, 5, v=2)


def test_the_gradient_of_values_follows_an_edit_of_index():
    values, index = nm_pack(make(20, 48, 2, 8), 2, 8)
    b, incoming = torch.randn(48, 33), torch.randn(20, 33)
    for _ in range(2):
        leaf = values.clone().requires_grad_()
        d_values, = torch.autograd.grad(nm_spmm(leaf, index, b, 2, 8, 48), leaf, incoming)
        assert_close(d_values, (incoming.double() @ b.double().t()).gather(1, nm_columns(index, 2, 8).long()), reduction=33)
        index[:, ::2] = 0
        index[:, 1::2] = 7


def test_gradients_take_a_position_that_is_none_for_the_last_one_too():
    index = torch.tensor([[0, 4, 255]], dtype=torch.uint8)              # no product is asked to look at them on a GPU
    assert nm_columns(index, 1, 4).tolist() == [[0, 7, 11]]


def test_what_is_remembered_is_bounded_and_dies_with_its_tensor():
    known, made = Remembered(slots=2), []

    def get(tensor, facts=()):
        return known.get(tensor, facts, lambda: made.append(1) or len(made))

    first, second, third = torch.zeros(3), torch.zeros(3), torch.zeros(3)
    assert [get(first), get(first), get(first, ("more",)), get(first)] == [1, 1, 2, 1]
    assert [get(second), get(third), get(first)] == [3, 4, 5]           # the two newest stay
    del third
    assert [get(second), len(known._known)] == [6, 2]
    first.add_(1)
    assert [get(first), get(first), len(known._known)] == [7, 7, 2]
    with torch.inference_mode():
        unversioned = torch.zeros(3)
    assert [get(unversioned), get(unversioned)] == [8, 9]


# ---- citizenship ----

@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")      # opcheck looks at its own copies
def test_opcheck():
    x = make(6, 12, 2, 4, 3)
    torch.library.opcheck(torch.ops.sparsekern.nm_pack.default, (x, 2, 4), {"v": 3})
    values, index = nm_pack(x, 2, 4, v=3)
    b, bias = torch.randn(12, 5, requires_grad=True), torch.randn(6, requires_grad=True)
    torch.library.opcheck(torch.ops.sparsekern.nm_spmm.default, (values.requires_grad_(), index, b, 2, 4, 12), {"v": 3, "bias": bias})


def test_compiles_whole():
    x, b = make(6, 12, 2, 4), torch.randn(12, 5, requires_grad=True)

    def loss(x, b):
        values, index = nm_pack(x, 2, 4)
        return nm_spmm(values, index, b, 2, 4, 12).square().sum()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True)):
        value = function(x, b)
        results.append((value, *torch.autograd.grad(value, b)))
    for got, want in zip(results[1], results[0]):
        torch.testing.assert_close(got, want)


# ---- misuse ----

BAD_INDEX = torch.tensor([[1, 3, 0, 3], [0, 1, 4, 1]], dtype=torch.uint8)


@pytest.mark.parametrize("x, n, m, v, error, words", [
    (W, 5, 4, 1, ValueError, "n: expected 0 to m = 4 elements kept of each group, got 5"),
    (W, 1, 65, 1, ValueError, "m: expected a group of 1 to 64 elements, got 65"),
    (W, 1, 3, 1, ValueError, r"x: expected a matrix with columns divisible by m = 3, got shape \[2, 8\]"),
    (W[0], 2, 4, 1, ValueError, r"x: expected a matrix with columns divisible by m = 4, got shape \[8\]"),
    (W, 2, 4, 0, ValueError, "v: expected at least 1 row that shares its columns, got 0"),
    (W, 2, 4, 3, ValueError, r"x: expected rows divisible by v = 3, got shape \[2, 8\]"),
    (W.int(), 2, 4, 1, TypeError, "x: expected float32, bfloat16, float16 or float64, got"),
    (W, 1, 4, 1, ValueError, "x: expected at most 1 non-zero elements in each group of 4, got more in row 0, group 0; apply nm_mask first"),
    (W[1:], 1, 4, 1, ValueError, "x: expected at most 1 non-zero elements in each group of 4, got more in row 0, group 1"),
    (W, 2, 4, 2, ValueError, "x: expected at most 2 non-zero columns in each group of 4, got more in rows 0 and following, group 1"),
    (W * math.nan, 2, 4, 1, ValueError, "x: expected at most 2 non-zero elements in each group of 4, got more in row 0, group 0"),
])
@pytest.mark.parametrize("name", each_implementation("nm_pack"))
def test_misuse_of_pack(name, x, n, m, v, error, words):
    with pytest.raises(error, match=f"nm_pack: {words}"):
        call("nm_pack", name, x, n, m, v=v)


@pytest.mark.parametrize("name", each_implementation("nm_pack"))
def test_the_first_group_at_fault_is_named(name):
    x = make(900, 512, 1, 8)
    x[777, 8 * 3:8 * 3 + 2] = x[800] = x[899] = 1.0
    with pytest.raises(ValueError, match="got more in row 777, group 3;"), threads(2):
        call("nm_pack", name, x, 1, 8)


@pytest.mark.parametrize("changed, error, words", [
    ({"n": 5}, ValueError, "n: expected 0 to m = 4 elements kept of each group, got 5"),
    ({"cols": 9}, ValueError, "cols: expected a multiple of m = 4, got 9"),
    ({"cols": -4}, ValueError, "cols: expected a multiple of m = 4, got -4"),
    ({"cols": 12}, ValueError, r"values: expected shape \[rows, 6\], got \[2, 4\]"),
    ({"values": VALUES[0]}, ValueError, r"values: expected shape \[rows, 4\], got \[4\]"),
    ({"values": VALUES.double()}, TypeError, "values: expected"),
    ({"values": VALUES.half()}, TypeError, "values: expected"),
    ({"index": INDEX[:1]}, ValueError, r"index: expected shape \[2, 4\], got \[1, 4\]"),
    ({"index": INDEX.int()}, TypeError, "index: expected uint8, got"),
    ({"index": BAD_INDEX}, ValueError, r"index: expected positions in \[0, 4\), got 4 in row 1, position 2"),
    ({"index": INDEX + 252}, ValueError, r"index: expected positions in \[0, 4\), got 253 in row 0, position 0"),
    ({"b": torch.ones(7, 2)}, ValueError, r"b: expected shape \[8, N\], got \[7, 2\]"),
    ({"b": torch.ones(8)}, ValueError, r"b: expected shape \[8, N\], got \[8\]"),
    ({"b": torch.ones(8, 2).int()}, TypeError, "b: expected float32, bfloat16, float16 or float64, got"),
    ({"bias": torch.ones(3)}, ValueError, r"bias: expected shape \[2\], got \[3\]"),
    ({"bias": torch.ones(2).double()}, TypeError, "bias: expected"),
    ({"v": 0}, ValueError, "v: expected at least 1 row that shares its columns, got 0"),
    ({"v": 3}, ValueError, r"values: expected rows divisible by v = 3, got shape \[2, 4\]"),
])
@pytest.mark.parametrize("name", SPMM)
def test_misuse_of_the_product(name, changed, error, words):
    given = {"values": VALUES, "index": INDEX, "b": torch.ones(8, 2), "n": 2, "m": 4, "cols": 8} | changed
    with pytest.raises(error, match=f"nm_spmm: {words}"):
        call("nm_spmm", name, *[given.pop(key) for key in ("values", "index", "b", "n", "m", "cols")], **given)


@pytest.mark.parametrize("name", SPMM)
def test_a_bad_position_is_found_wherever_it_stands(name):
    for count in (1, 7, 8, 9, 33):
        for place in range(count):
            index = torch.zeros(1, count, dtype=torch.uint8)
            index[0, place] = 64 if place % 2 else 200
            with pytest.raises(ValueError, match=rf"got {int(index[0, place])} in row 0, position {place}"):
                call("nm_spmm", name, torch.ones(1, count), index, torch.ones(64 * count, 1), 1, 64, 64 * count)
