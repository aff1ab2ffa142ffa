"""Who multiplies a 2:4 matrix: the order, the self-test, and what becomes of a backend that is wrong. Backends here are made up."""
import pytest
import torch

from sparsekern import ops
from sparsekern.ops import _sp24_backends as backends
from sparsekern.ops.sp24 import sp24_mm_on_gpu

CPU = torch.device("cpu")


class Fake:
    """The right product, unless `spoil` changes it."""

    def __init__(self, name, spoil=lambda out: out, refusal=""):
        self.name, self.spoil, self.refusal, self.calls = name, spoil, refusal, []

    def refuses(self, problem):
        return self.refusal

    def product(self, v, e, b, bias, problem):
        self.calls.append((tuple(b.shape), b.stride(), bias is not None))
        return self.spoil(backends.dense_product(v, e, b, bias, problem.layout, problem.out_dtype))


@pytest.fixture
def use(monkeypatch):
    """use(*fakes): these are the backends, none of them tested yet; every size is worth one of them."""
    def put(*fakes, below=0):
        monkeypatch.setattr(backends, "BACKENDS", list(fakes))
        monkeypatch.setattr(backends, "_verdicts", {})
        monkeypatch.setattr(backends, "DENSE_BELOW", below)
        return fakes
    return put


def problem(rows=4096, cols=4096, n=4096, dtype=torch.bfloat16, layout="sm80", device=CPU):
    return backends.Problem(rows, cols, n, dtype, layout, dtype, device)


def operands(dtype=torch.bfloat16):
    v, e = ops.sp24_compress(torch.randn(64, 128).to(dtype))[:2]
    return v, e, torch.randn(128, 24).to(dtype)


def test_the_first_that_is_right_is_taken(use):
    first, second = use(Fake("first"), Fake("second"))
    assert backends.choose(problem()) == ("first", "first: passed its self-test")
    assert len(first.calls) == 4 and not second.calls                   # b in either order, with and without a bias
    assert {bias for *_, bias in first.calls} == {True, False} and len({stride for _, stride, _ in first.calls}) == 2
    backends.choose(problem(n=2048))
    assert len(first.calls) == 4                                        # tested once
    backends.choose(problem(dtype=torch.float16))
    assert len(first.calls) == 8                                        # per dtype


def test_autocast_changes_neither_verdict_nor_type(use, recwarn):
    use(Fake("fake"))
    v, e, b = operands(torch.float16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ops.sp24_backend(64, 128, 24, dtype=torch.float16, device="cpu").backend == "fake" and not recwarn.list
        got = ops.sp24_mm(v, e, b)
    assert torch.equal(got, ops.sp24_mm(v, e, b)) and got.dtype == torch.float16


def one_wrong(out):
    out[-1, -1] += 1
    return out


@pytest.mark.parametrize("spoil, words", [
    (one_wrong, "1 of 17408 elements of a product of whole numbers are wrong"),
    (lambda out: out.roll(1, 0), "elements of a product of whole numbers are wrong"),
    (lambda out: out * float("nan"), "17408 of 17408 elements"),
    (lambda out: out.float(), "it gave torch.float32"),
    (lambda out: out[:, :128], r"it gave torch.bfloat16 \[128, 128\] where torch.bfloat16 \[128, 136\] was due"),
    (lambda out: 1 / 0, "ZeroDivisionError: division by zero")])
def test_a_wrong_one_is_named_once_and_left_alone(use, spoil, words, recwarn):
    wrong, right = use(Fake("wrong", spoil), Fake("right"))
    with pytest.warns(UserWarning, match="sp24_mm: wrong is not used for torch.bfloat16 on cpu: .*" + words):
        choice = backends.choose(problem())
    assert choice.backend == "right" and choice.reason.startswith("wrong: ") and choice.reason.endswith("right: passed its self-test")
    calls = len(wrong.calls)
    recwarn.clear()
    v, e, b = operands()
    for _ in range(3):
        assert torch.equal(sp24_mm_on_gpu(v, e, b), backends.dense_product(v, e, b, None, "sm80", torch.bfloat16))
    assert len(wrong.calls) == calls and not recwarn.list               # neither asked nor named again


def test_all_wrong_is_dense(use):
    use(Fake("one", one_wrong), Fake("two", refusal="not today"))
    with pytest.warns(UserWarning, match="one is not used"):
        choice = backends.choose(problem())
    assert choice.backend == "dense" and "two: not today" in choice.reason and "whole numbers" in choice.reason
    v, e, b = operands()
    assert torch.equal(sp24_mm_on_gpu(v, e, b), backends.dense_product(v, e, b, None, "sm80", torch.bfloat16))


def test_a_refusal_is_no_fault(use, recwarn):
    shy, right = use(Fake("shy", refusal="takes nothing"), Fake("right"))
    assert backends.choose(problem()) == ("right", "shy: takes nothing; right: passed its self-test")
    assert not shy.calls and not recwarn.list
    shy.refusal = ""
    assert backends.choose(problem()).backend == "shy"                  # of another problem it may think otherwise


@pytest.mark.parametrize("side", range(3))
def test_small_is_dense(use, side):
    fake, = use(Fake("fake"), below=2048)
    sizes = [2048] * 3
    assert backends.choose(problem(*sizes)).backend == "fake"
    sizes[side] = 2047
    choice = backends.choose(problem(*sizes))
    assert choice.backend == "dense" and choice.reason.endswith("is below 2048") and "2047" in choice.reason
    assert backends.DENSE_BELOW == 2048


def test_the_chosen_one_gets_the_product(use):
    fake, = use(Fake("fake"))
    v, e, b = operands()
    bias = torch.randn(64)
    want = backends.dense_product(v, e, b, bias.bfloat16(), "sm80", torch.bfloat16)
    assert torch.equal(sp24_mm_on_gpu(v, e, b, bias=bias), want)        # a float32 bias is rounded to b's dtype
    assert fake.calls[-1] == ((128, 24), (24, 1), True)


def test_what_was_chosen_and_why(use):
    use(Fake("fake"), below=2048)
    assert ops.sp24_backend(4096, 4096, 4096, device="cpu") == ("fake", "fake: passed its self-test")
    assert ops.sp24_backend(4096, 4096, 16, device="cpu").backend == "dense"


def test_the_real_ones_refuse_a_cpu():
    choice = ops.sp24_backend(4096, 4096, 4096, device="cpu")
    assert choice == ("dense", "cuSPARSELt: runs on CUDA, not on cpu; CUTLASS: runs on CUDA, not on cpu")
    assert [b.name for b in backends.BACKENDS] == ["cuSPARSELt", "CUTLASS"]


def test_what_the_real_ones_cannot_take():
    def why(backend, **changes):
        return backend.refuses(problem(device=torch.device("cuda"))._replace(**changes))
    lt, cutlass = backends.BACKENDS
    assert why(cutlass, layout="linear") == 'takes layout "sm80", not "linear"'
    assert "float16 or bfloat16, not torch.float32 to" in why(cutlass, dtype=torch.float32) and "not torch.float32" in why(lt, dtype=torch.float32)
    assert "torch.bfloat16 to torch.float32" in why(lt, out_dtype=torch.float32)


def test_no_self_test_while_a_graph_is_captured(use, monkeypatch):
    fake, = use(Fake("fake"))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    choice = backends.choose(problem(device=torch.device("cuda", 0)))
    assert choice == ("dense", "fake: not tested yet, which cannot be done while a CUDA graph is captured") and not fake.calls
    backends._verdicts[("fake", torch.bfloat16, "sm80", torch.device("cuda", 0))] = ""
    assert backends.choose(problem(device=torch.device("cuda", 0))).backend == "fake"


def test_operands_as_the_libraries_take_them():
    for b in (torch.randn(16, 24), torch.randn(24, 16).t(), torch.randn(16, 48)[:, ::2], torch.randn(16, 21), torch.randn(21, 16).t(),
              torch.randn(16 * 24 + 1)[1:].view(16, 24), torch.randn(16, 0)):
        made = backends._operand(b)
        assert made.shape[1] % 8 == 0 and (made.is_contiguous() or made.t().is_contiguous()) and made.data_ptr() % 16 == 0
        assert torch.equal(made[:, :b.shape[1]], b) and not made[:, b.shape[1]:].any()


def test_private_form_follows_the_weights(monkeypatch):
    made = []
    monkeypatch.setattr(backends.CuSparseLt, "pack", staticmethod(lambda v, e, layout: made.append(backends._dense(v, e, layout)) or made[-1]))
    lt = backends.CuSparseLt()
    v, e, _ = operands()
    assert lt.packed(v, e, "sm80") is lt.packed(v, e, "sm80") and len(made) == 1
    v.mul_(2)
    assert lt.packed(v, e, "sm80") is made[1]
    e.copy_(e)
    assert lt.packed(v, e, "sm80") is made[2]
    assert lt.packed(v, e.clone(), "sm80") is made[3] and lt.packed(v, e, "linear") is made[4]
    v.data = -v                                                         # counts as no new version
    assert torch.equal(lt.packed(v, e, "linear"), -made[4])
    del v                                                               # and is not kept when they go
    assert len(lt._packed) == 0
    with torch.inference_mode():
        v, e, _ = operands()
    lt.packed(v, e, "sm80")
    assert lt.packed(v, e, "sm80") is made[7]                           # such tensors count no versions


def test_the_algorithm_is_searched_once_per_shape(monkeypatch):
    searches = []
    monkeypatch.setattr(torch, "_cslt_sparse_mm_search", lambda packed, b, bias=None: searches.append(b.shape) or 7)
    monkeypatch.setattr(torch, "_cslt_sparse_mm", lambda packed, b, bias=None, alg_id=0: packed @ b + alg_id)
    monkeypatch.setattr(backends.CuSparseLt, "pack", staticmethod(backends._dense))
    lt = backends.CuSparseLt()
    v, e, b = operands()
    for _ in range(2):
        for operand in (b, b[:, :13], b.t().contiguous().t()):
            p = problem(64, 128, operand.shape[1])
            assert torch.equal(lt.product(v, e, operand, None, p), backends.dense_product(v, e, operand, None, "sm80", p.dtype) + 7)
    assert len(searches) == 3


def test_cutlass_gets_its_operands(monkeypatch):
    seen = []

    def mm(v, e, b):
        seen.append(b.shape)
        return backends._dense(v, e, "sm80") @ b

    monkeypatch.setattr(torch, "_sparse_semi_structured_mm", mm)
    monkeypatch.setattr(torch, "_sparse_semi_structured_addmm", lambda bias, v, e, b: torch.addmm(bias[:, None], backends._dense(v, e, "sm80"), b))
    v, e, b = operands()
    bias = torch.randn(64).bfloat16()
    for operand in (b, b[:, :13]):
        p = problem(64, 128, operand.shape[1])
        for add in (None, bias):
            torch.testing.assert_close(backends.Cutlass().product(v, e, operand, add, p), backends.dense_product(v, e, operand, add, "sm80", p.dtype))
    assert seen == [(128, 24), (128, 16)]
