"""sp24_compress, sp24_decompress and sp24_mm: every pattern, bit for bit, in torch's own order; and who multiplies."""
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.sparse import _semi_structured_conversions as torchs

from sparsekern import ops
from sparsekern._native import native
from sparsekern.ops import nm_mask, nm_mask_transposable, sp24_compress, sp24_decompress, sp24_mm
from sparsekern.ops.sp24 import arrange, arranged
from sparsekern.testing import assert_close, each_implementation, threads

TYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
HALVES = TYPES[:2]
PAIRS = list(itertools.combinations(range(4), 2))
LAYOUTS = ["sm80", "linear"]


def call(op, name, *args, **kwargs):
    return ops.implementations(op)[name](*args, **kwargs)


def bits(tensor):
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def same(got, want):
    """Equal to the bit, NaN and the sign of zero included."""
    return len(got) == len(want) and all(a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b)) for a, b in zip(got, want))


def special(shape, dtype):
    """Few different values: ties everywhere, zeros of both signs, NaN and inf."""
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, math.nan, math.inf, -math.inf, 0.5])
    return values[torch.randint(len(values), shape)].to(dtype)


def by_hand(group, marked=(True,) * 4):
    """(values, positions) that a group of four is packed to: the definition."""
    found = sorted((i for i in range(4) if marked[i]), key=lambda i: (math.isnan(group[i]), 0 if math.isnan(group[i]) else -abs(group[i]), i))[:2]
    places = sorted(found + [i for i in range(4) if i not in found][:2 - len(found)])
    return [group[i] if i in found else 0.0 for i in places], places


def positions(e, layout):
    """int [rows, groups, 2] from the packed words."""
    nibbles = arranged(e, layout).int()[..., None] >> torch.arange(0, 16, 4) & 15
    return torch.stack([nibbles & 3, nibbles >> 2], -1).flatten(1, 2)


# ---- worked examples ----

@pytest.mark.parametrize("name", each_implementation("sp24_compress"))
def test_worked_example(name):
    x = torch.zeros(32, 64)
    x[0, :16] = torch.tensor([1.0, -4, 3, 2, 5, 5, 5, 5, 0, math.nan, -0.0, 0, math.nan, math.nan, math.nan, 7])
    v, e, vt, et = call("sp24_compress", name, x, layout="linear")
    assert v[0, :5].tolist() == [-4, 3, 5, 5, 0] and v[0, 5].signbit() and v[0, 6].isnan() and v[0, 7] == 7
    # Positions (1, 2) (0, 1) (0, 2) (0, 3): 1 | 2 << 2, 0 | 1 << 2, 0 | 2 << 2, 0 | 3 << 2.
    assert e[0, 0].item() & 0xffff == 9 | 4 << 4 | 8 << 8 | 12 << 12 and e[0, 1] == e[1, 0] == 0x4444
    assert vt.numel() == et.numel() == 0 and et.dtype == torch.int16
    mask = torch.zeros(32, 64, dtype=torch.bool)
    mask[0, [2, 4, 5, 6, 7]] = True                                     # one marked, four marked, none
    v, e, _, _ = call("sp24_compress", name, x, mask=mask, layout="linear")
    assert v[0, :8].tolist() == [0, 3, 5, 5, 0, 0, 0, 0] and not v.signbit().any() and e[0, 0].item() & 0xffff == 8 | 4 << 4 | 4 << 8 | 4 << 12


@pytest.mark.parametrize("name", each_implementation("sp24_decompress"))
def test_worked_example_decompress(name):
    v, e = torch.zeros(32, 32), torch.zeros(32, 4, dtype=torch.int16)
    v[3, :2], e[3, 0] = torch.tensor([-0.0, 2.0]), 14                   # positions (2, 3)
    w = call("sp24_decompress", name, v, e, [32, 64], layout="linear")
    assert w[3, :4].tolist() == [0, 0, 0, 2] and w[3, :4].signbit().tolist() == [False, False, True, False] and w.count_nonzero() == 1


def test_worked_example_product():
    w, b = torch.zeros(32, 64), torch.arange(128.0).view(64, 2)
    w[1, 2], w[1, 3] = 3.0, -1.0
    out = sp24_mm(*sp24_compress(w)[:2], b, bias=torch.ones(32))
    assert out[1].tolist() == [3 * 4 - 6 + 1, 3 * 5 - 7 + 1] and out[0].tolist() == [1, 1]


# ---- every pattern ----

def every_mask():
    """bool [64, 64]: all 16 masks of a group in every position of a row, and in every row."""
    mask = torch.tensor([[m >> i & 1 for i in range(4)] for m in range(16)]).bool()
    return torch.stack([torch.cat([mask[(r + g) % 16] for g in range(16)]) for r in range(64)])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", each_implementation("sp24_compress"))
def test_every_mask_in_every_position(name, dtype, layout):
    for x, mask in ((torch.randn(64, 64).to(dtype), every_mask()), (special((64, 64), dtype), every_mask()), (special((64, 64), dtype), None)):
        v, e, _, _ = call("sp24_compress", name, x, mask=mask, layout=layout)
        marked = (torch.ones_like(x, dtype=torch.bool) if mask is None else mask).view(64, 16, 4).tolist()
        want = [[by_hand(group, marked[r][g]) for g, group in enumerate(row)] for r, row in enumerate(x.view(64, 16, 4).tolist())]
        assert positions(e, layout).tolist() == [[places for _, places in row] for row in want]
        assert same([v], [torch.tensor([sum((values for values, _ in row), []) for row in want]).to(dtype)])
        kept = torch.zeros(64, 16, 4, dtype=torch.bool).scatter_(2, positions(e, layout).long(), True).view(64, 64)
        dense = torch.where(kept if mask is None else kept & mask, x, 0)
        assert same([call("sp24_decompress", name, v, e, [64, 64], layout=layout)], [dense])
        if mask is None:
            assert torch.equal(kept, nm_mask(x, 2, 4))


@pytest.mark.parametrize("name", each_implementation("sp24_decompress"))
def test_every_nibble(name):
    """Also pairs that compressing never makes: of two claims to a position, the second stands."""
    nibbles = torch.stack([(torch.arange(16) + r) % 16 for r in range(32)])
    e = (nibbles.view(32, 4, 4) << torch.arange(0, 16, 4)).sum(-1).to(torch.int16)
    v, want = torch.randn(32, 32).bfloat16(), torch.zeros(32, 64).bfloat16()
    for r, g in itertools.product(range(32), range(16)):
        low, high = int(nibbles[r, g]) & 3, int(nibbles[r, g]) >> 2
        want[r, 4 * g + low] = v[r, 2 * g]
        want[r, 4 * g + high] = v[r, 2 * g + 1]
    assert same([call("sp24_decompress", name, v, e, [32, 64], layout="linear")], [want])


# ---- torch's own conversion as the oracle of the order ----

@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shape", [(32, 64), (64, 64), (96, 192), (256, 128)], ids=str)
@pytest.mark.parametrize("name", each_implementation("sp24_compress"))
def test_sm80_is_what_torchs_cutlass_path_takes(name, shape, dtype):
    x = torch.randn(shape).to(dtype)
    x = torch.where(x == 0, torch.ones_like(x), x)                     # its packing looks for non-zeros
    v, e, _, _ = call("sp24_compress", name, x)
    dense = torch.where(nm_mask(x, 2, 4), x, 0)
    want_v, want_e = torchs.sparse_semi_structured_from_dense_cutlass(dense)
    assert same([v, e], [want_v, want_e])
    assert same([torchs.sparse_semi_structured_to_dense_cutlass(v, e)], [dense])
    assert same([call("sp24_decompress", name, want_v, want_e, list(shape))], [dense])


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("name", each_implementation("sp24_compress"))
def test_each_of_the_six_patterns_alone(name, pair):
    x = torch.zeros(64, 128, dtype=torch.bfloat16)
    x.view(64, 32, 4)[..., list(pair)] = (torch.rand(64, 32, 2) + 0.5).bfloat16()
    v, e, _, _ = call("sp24_compress", name, x)
    assert same([v, e], torchs.sparse_semi_structured_from_dense_cutlass(x))
    assert (e == e[0, 0]).all() and same([call("sp24_decompress", name, v, e, [64, 128])], [x])


def test_fewer_than_two_come_back_through_torch():
    x = torch.randn(64, 64).half()
    v, e, _, _ = sp24_compress(x, mask=every_mask() & nm_mask(x, 2, 4))
    assert same([torchs.sparse_semi_structured_to_dense_cutlass(v, e)], [torch.where(every_mask() & nm_mask(x, 2, 4), x, 0)])


def test_arranging_is_a_permutation():
    words = torch.arange(96 * 8).view(96, 8)
    for layout in LAYOUTS:
        assert torch.equal(arranged(arrange(words, layout), layout), words)
        assert torch.equal(arrange(words, layout).flatten().sort().values, words.flatten())


# ---- agreement ----

def assert_agrees(name, dtype, shapes=((32, 64), (0, 64), (32, 0), (96, 64), (64, 448), (224, 192))):
    for shape, layout in itertools.product(shapes, LAYOUTS):
        for x in (torch.randn(shape).to(dtype), special(shape, dtype)):
            mask = torch.rand(shape) < 0.5
            for given_mask in (None, mask, ops.pack_mask(mask), torch.empty(0, dtype=torch.bool)):
                want = call("sp24_compress", "reference", x, mask=given_mask, layout=layout)
                got = call("sp24_compress", name, x, mask=given_mask, layout=layout)
                assert same(got, want), (shape, layout, dtype)
                assert same([call("sp24_decompress", name, *got[:2], list(shape), layout=layout)],
                            [call("sp24_decompress", "reference", *got[:2], list(shape), layout=layout)])
            if shape[0] % 64 == 0:
                mask = nm_mask_transposable(torch.randn(shape)) & (torch.rand(shape) < 0.9)
                for given_mask in (None, mask, ops.pack_mask(mask)):
                    want = call("sp24_compress", "reference", x, mask=given_mask, both=True, layout=layout)
                    assert same(call("sp24_compress", name, x, mask=given_mask, both=True, layout=layout), want), (shape, layout, dtype)


@pytest.mark.skipif("cpu" not in each_implementation("sp24_compress"), reason="no compiled kernels")
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_cpu_agrees(isa, dtype):
    assert_agrees("cpu", dtype)


@pytest.mark.parametrize("name", each_implementation("sp24_compress"))
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_both_ways_is_the_matrix_and_its_transpose(name, dtype):
    for x in (torch.randn(128, 192).to(dtype), special((128, 192), dtype)):
        v, e, vt, et = call("sp24_compress", name, x, both=True)
        dense = torch.where(nm_mask_transposable(x), x, 0)
        assert same([call("sp24_decompress", name, v, e, [128, 192])], [dense])
        assert same([call("sp24_decompress", name, vt, et, [192, 128])], [dense.t()])


@pytest.mark.parametrize("name", each_implementation("sp24_compress"))
def test_a_million_groups_come_back(name):
    x = torch.randn(2048, 2048).bfloat16()
    v, e, _, _ = call("sp24_compress", name, x)
    assert same([call("sp24_decompress", name, v, e, [2048, 2048])], [torch.where(nm_mask(x, 2, 4), x, 0)])


@pytest.mark.parametrize("name", each_implementation("sp24_compress"))
def test_strides(name):
    wide = torch.randn(130, 200).bfloat16()
    for x in (wide.t()[:192, :128], wide[1:129, 3:195], wide[:128:2, :192], wide[:1, :64].expand(64, 64)):
        assert same(call("sp24_compress", name, x, both=True), call("sp24_compress", "reference", x.contiguous(), both=True))
        mask = nm_mask_transposable(torch.randn(x.t().shape)).t()
        v, e, vt, et = call("sp24_compress", name, x, mask=mask, both=True)
        assert same([v, e, vt, et], call("sp24_compress", "reference", x.contiguous(), mask=mask.contiguous(), both=True))
        for a, b in ((vt.t().contiguous().t(), et), (vt, et.t().contiguous().t())):
            assert same([call("sp24_decompress", name, a, b, list(x.t().shape))], [torch.where(mask, x, 0).t()])


def test_same_bits_for_every_thread_count():
    x = torch.randn(1024, 1024).bfloat16()
    with threads(1):
        want = sp24_compress(x, both=True)[:4]
    with threads(2):
        assert same(sp24_compress(x, both=True)[:4], want)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 140), cols=st.integers(1, 140), both=st.booleans(), density=st.sampled_from([None, 0.0, 0.3, 1.0]),
       layout=st.sampled_from(LAYOUTS), dtype=st.sampled_from(TYPES), packed=st.booleans(), seed=st.integers(0, 99))
def test_any_shape_comes_back(rows, cols, both, density, layout, dtype, packed, seed):
    torch.manual_seed(seed)
    x, mask = torch.randn(rows, cols).to(dtype), None
    kept = nm_mask(x, 2, 4)
    if both or density is not None:
        mask = torch.rand(rows, cols) < (density or 0.5)
        if both:
            filled = torch.nn.functional.pad(x, (0, -cols % 4, 0, -rows % 4))
            mask &= nm_mask_transposable(filled)[:rows, :cols]
            kept = mask
        else:
            kept = mask & nm_mask(torch.where(mask, x, 0), 2, 4)
    made = sp24_compress(x, mask=ops.pack_mask(mask) if packed and mask is not None else mask, both=both, layout=layout)
    assert made.shape == (rows, cols)
    assert same([sp24_decompress(made.v, made.e, made.shape, layout=layout)], [torch.where(kept, x, 0)])
    if both:
        assert same([sp24_decompress(made.vt, made.et, (cols, rows), layout=layout)], [torch.where(kept, x, 0).t()])
    b, bias = torch.randn(cols, 5).to(dtype), torch.randn(rows).to(dtype)
    got = sp24_mm(made.v, made.e, b, bias=bias, layout=layout, rows=rows)
    want = torch.where(kept, x, 0).double() @ b.double() + bias.double()[:, None]
    assert got.dtype == dtype
    assert_close(got, want, dtype=dtype, reduction=cols)


# ---- product ----

@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_product(dtype):
    x = torch.randn(96, 192).to(dtype)
    v, e = sp24_compress(x)[:2]
    w = torch.where(nm_mask(x, 2, 4), x, 0).double()
    for b in (torch.randn(192, 37).to(dtype), torch.randn(37, 192).to(dtype).t(), torch.randn(192, 80).to(dtype)[:, ::2],
              torch.empty(192, 0).to(dtype)):
        for bias in (None, torch.randn(96).to(dtype), torch.randn(96).to(torch.float64 if dtype == torch.float64 else torch.float32)):
            for out_dtype in (None, dtype, torch.float64 if dtype == torch.float64 else torch.float32):
                got = sp24_mm(v, e, b, bias=bias, out_dtype=out_dtype)
                assert got.dtype == (out_dtype or dtype)
                assert_close(got, w @ b.double() + (0 if bias is None else bias.double()[:, None]), dtype=got.dtype, reduction=192)


def test_gradients():
    x = torch.randn(32, 64, dtype=torch.float64)
    v, e = sp24_compress(x)[:2]
    b, bias = torch.randn(64, 3, dtype=torch.float64, requires_grad=True), torch.randn(32, dtype=torch.float64, requires_grad=True)

    def product(b, bias):
        return sp24_mm(v, e, b, bias=bias)
    assert torch.autograd.gradcheck(product, (b, bias)) and torch.autograd.gradgradcheck(product, (b, bias))
    short = torch.randn(50, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda b: sp24_mm(v, e, b, rows=20), (short,))


def test_autocast_leaves_the_types_alone():
    v, e = ops.sp24_compress(torch.randn(32, 64))[:2]
    b = torch.randn(64, 5, requires_grad=True)
    want, = torch.autograd.grad((product := ops.sp24_mm(v, e, b)).sum(), b)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ops.sp24_mm(v, e, b)
        gradient, = torch.autograd.grad(got.sum(), b)
    assert torch.equal(got, product) and torch.equal(gradient, want)


def test_gradient_of_halves():
    x = torch.randn(64, 64).bfloat16()
    v, e = sp24_compress(x)[:2]
    b = torch.randn(64, 8).bfloat16().requires_grad_()
    sp24_mm(v, e, b, out_dtype=torch.float32).square().sum().backward()
    w = torch.where(nm_mask(x, 2, 4), x, 0).double()
    assert b.grad.dtype == torch.bfloat16
    assert_close(b.grad, 2 * w.t() @ (w @ b.detach().double()), dtype=torch.bfloat16, reduction=64)


@pytest.mark.filterwarnings("ignore")
def test_opcheck():
    x = torch.randn(64, 128).bfloat16()
    mask = nm_mask_transposable(x)
    v, e, vt, et = torch.ops.sparsekern.sp24_compress(x, both=True)
    for options in ({}, {"both": True}, {"mask": mask, "both": True, "layout": "linear"}, {"mask": ops.pack_mask(mask)}):
        torch.library.opcheck(torch.ops.sparsekern.sp24_compress.default, (x,), options)
    torch.library.opcheck(torch.ops.sparsekern.sp24_decompress.default, (v, e, [64, 128]))
    b, bias = torch.randn(128, 9).bfloat16(), torch.randn(64).bfloat16()
    torch.library.opcheck(torch.ops.sparsekern.sp24_mm.default, (v, e, b.clone().requires_grad_()), {"bias": bias.clone().requires_grad_()})
    torch.library.opcheck(torch.ops.sparsekern.sp24_mm.default, (v, e, b), {"out_dtype": torch.float32})


# ---- bad input ----

@pytest.mark.parametrize("name", each_implementation("sp24_compress"))
def test_bad_input_compress(name):
    x, three = torch.randn(64, 64), torch.ones(64, 64, dtype=torch.bool)
    three.view(64, 16, 4)[..., 3] = False
    for error, words, matrix, options in (
            (TypeError, "x: expected float32, bfloat16, float16 or float64, got", x.int(), {}),
            (ValueError, r"x: expected a matrix with rows divisible by 32 and columns by 64 .*got shape \[31, 64\]", x[:31], {}),
            (ValueError, r"rows divisible by 64 and columns by 64", x[:32], {"both": True}),
            (ValueError, r"columns by 64 .*got shape \[64, 32\]", x[:, :32], {}),
            (ValueError, r"expected a matrix .*got shape \[64\]", x[0], {}),
            (ValueError, 'layout: expected "sm80" or "linear", got "sm90"', x, {"layout": "sm90"}),
            (ValueError, "mask: expected a bool mask of shape", x, {"mask": three[:32]}),
            (TypeError, "mask: expected a bool mask, packed int32 words", x, {"mask": three.float()}),
            (ValueError, "mask: expected 128 contiguous int32 words", x, {"mask": torch.zeros(127, dtype=torch.int32)}),
            (ValueError, "at most 2 of 4 along rows and along columns .*row 0, column 0; make it with nm_mask_transposable", x,
             {"mask": three, "both": True})):
        with pytest.raises(error, match="sp24_compress: " + (".*" if not words.startswith(("x", "mask", "layout")) else "") + words):
            call("sp24_compress", name, matrix, **options)
    late = nm_mask_transposable(x)
    late[41, 20:24] = True
    with pytest.raises(ValueError, match="at row 40, column 20"):
        call("sp24_compress", name, x.bfloat16(), mask=late, both=True)


@pytest.mark.parametrize("name", each_implementation("sp24_decompress"))
def test_bad_input_decompress(name):
    v, e = sp24_compress(torch.randn(64, 64))[:2]
    for error, words, args, options in (
            (TypeError, "v: expected float32", (v.int(), e, [64, 64]), {}),
            (TypeError, "e: expected int16, got", (v, e.int(), [64, 64]), {}),
            (ValueError, r"e: expected shape \[64, 4\], got \[32, 4\]", (v, e[:32], [64, 64]), {}),
            (ValueError, r"v: expected a matrix with rows and columns divisible by 32, got shape \[64, 31\]", (v[:, 1:], e, [64, 64]), {}),
            (ValueError, r"shape: expected \[64, 64\], got \[64, 60\]", (v, e, [64, 60]), {}),
            (ValueError, 'layout: expected "sm80" or "linear"', (v, e, [64, 64]), {"layout": ""})):
        with pytest.raises(error, match="sp24_decompress: " + words):
            call("sp24_decompress", name, *args, **options)


def test_bad_input_of_the_front_doors():
    v, e = sp24_compress(torch.randn(64, 64))[:2]
    b = torch.randn(64, 3)
    for error, words, run in (
            (ValueError, r"sp24_decompress: shape: .*got \[65, 64\]", lambda: sp24_decompress(v, e, [65, 64])),
            (ValueError, r"sp24_decompress: shape: .*got \[64\]", lambda: sp24_decompress(v, e, [64])),
            (ValueError, r"sp24_decompress: shape: .*got \[0, 64\]", lambda: sp24_decompress(v, e, [0, 64])),
            (ValueError, "sp24_compress: mask: expected a bool mask of shape", lambda: sp24_compress(b, mask=torch.ones(2, 2, dtype=torch.bool))),
            (TypeError, "sp24_mm: b: expected torch.float32 like v, got torch.bfloat16", lambda: sp24_mm(v, e, b.bfloat16())),
            (ValueError, r"sp24_mm: b: expected shape \[64, N\], got \[65, 3\]", lambda: sp24_mm(v, e, torch.randn(65, 3))),
            (ValueError, r"sp24_mm: bias: expected shape \[64\]", lambda: sp24_mm(v, e, b, bias=torch.ones(65))),
            (TypeError, "sp24_mm: bias: expected torch.float32 beside", lambda: sp24_mm(v, e, b, bias=torch.ones(64).half())),
            (TypeError, "sp24_mm: out_dtype: expected torch.float32 beside", lambda: sp24_mm(v, e, b, out_dtype=torch.float16)),
            (TypeError, "sp24_mm: e: expected int16", lambda: sp24_mm(v, e.int(), b)),
            (ValueError, "sp24_mm: rows: .*got 65", lambda: sp24_mm(v, e, b, rows=65)),
            (ValueError, "sp24_mm: layout", lambda: sp24_mm(v, e, b, layout="x")),
            (ValueError, "sp24_backend: layout", lambda: ops.sp24_backend(1, 1, 1, layout="x", device="cpu"))):
        with pytest.raises(error, match=words):
            run()


def test_native_kernels_are_live():
    if not native.available:
        pytest.skip(native.reason)
    assert each_implementation("sp24_compress") == ["reference", "cpu"] == each_implementation("sp24_decompress")
