"""Who multiplies a 2:4 matrix on a GPU: torch's cuSPARSELt path, its CUTLASS path, or a dense product; and why.

A backend is trusted only after a self-test at its first use in this process, per dtype and device: products of small whole numbers,
whose sums are exact in every dtype and order, must equal the dense ones. One that differs or fails is left alone from then on, with
one warning.
"""
import threading
import warnings
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

DENSE_BELOW = 2048          # of any side: below it a dense product wins, by what others report; not measured here
HALVES = (torch.float16, torch.bfloat16)


class Problem(NamedTuple):
    """[rows, cols] 2:4 @ [cols, n]."""

    rows: int
    cols: int
    n: int
    dtype: torch.dtype
    layout: str
    out_dtype: torch.dtype
    device: torch.device


class Choice(NamedTuple):
    """backend: a backend's name, or "dense"."""

    backend: str
    reason: str


class Backend(Protocol):
    name: str

    def refuses(self, problem: Problem) -> str:
        """Why it cannot take this problem, or an empty string."""

    def product(self, v: Tensor, e: Tensor, b: Tensor, bias: Tensor | None, problem: Problem) -> Tensor:
        """[rows, n]; bias is of b's dtype."""


def _refuses_halves(problem: Problem) -> str:
    if problem.device.type != "cuda":
        return f"runs on CUDA, not on {problem.device.type}"
    if problem.dtype not in HALVES or problem.out_dtype != problem.dtype:
        return f"takes and gives float16 or bfloat16, not {problem.dtype} to {problem.out_dtype}"
    if torch.cuda.get_device_capability(problem.device) < (8, 0):
        return "needs compute capability 8.0 or later"
    return ""


def _operand(b: Tensor, multiple: int = 8) -> Tensor:
    """b as the libraries take it: row- or column-major, beginning at 16 bytes, columns (and thereby strides) divisible by `multiple`."""
    if fill := -b.shape[1] % multiple:
        return torch.nn.functional.pad(b, (0, fill)).contiguous()
    if not (b.is_contiguous() or b.t().is_contiguous()):
        return b.contiguous()
    return b if b.data_ptr() % 16 == 0 else b.clone()


def _aligned(t: Tensor) -> Tensor:
    t = t.contiguous()
    return t if t.data_ptr() % 16 == 0 else t.clone()


class Cutlass:
    """torch._sparse_semi_structured_mm: takes v and e as they are."""

    name = "CUTLASS"

    def refuses(self, problem: Problem) -> str:
        if problem.layout != "sm80":
            return f'takes layout "sm80", not "{problem.layout}"'
        return _refuses_halves(problem)

    def product(self, v, e, b, bias, problem):
        v, e, b = _aligned(v), _aligned(e), _operand(b)
        out = torch._sparse_semi_structured_mm(v, e, b) if bias is None else torch._sparse_semi_structured_addmm(bias, v, e, b)
        return out[:, :problem.n]


class CuSparseLt:
    """torch._cslt_sparse_mm: its packed form is private, so it gets one of its own, made once per v; the algorithm is searched once per shape."""

    name = "cuSPARSELt"

    def __init__(self):
        self._packed = WeakIdKeyDictionary()                # v -> (e, the state of both, the private form)
        self._algorithms: dict[tuple, int] = {}

    def refuses(self, problem: Problem) -> str:
        if why := _refuses_halves(problem):
            return why
        if not torch.backends.cusparselt.is_available():
            return "this torch has none"
        if torch.cuda.is_current_stream_capturing():
            return "its copy of the weights would not follow them in a CUDA graph"
        return "its copy of the weights cannot follow tensors of inference mode" if torch.is_inference_mode_enabled() else ""

    def product(self, v, e, b, bias, problem):
        packed, b = self.packed(v, e, problem.layout), _operand(b)
        key = (*problem, b.is_contiguous(), bias is None)
        if key not in self._algorithms:
            self._algorithms[key] = int(torch._cslt_sparse_mm_search(packed, b, bias=bias))
        return torch._cslt_sparse_mm(packed, b, bias=bias, alg_id=self._algorithms[key])[:, :problem.n]

    def packed(self, v: Tensor, e: Tensor, layout: str) -> Tensor:
        """The private form of (v, e), again only when one of them has changed."""
        if v.is_inference() or e.is_inference():            # they count no versions
            return self.pack(v, e, layout)
        # Memory belongs to the stream it was made on.
        state = v._version, v.data_ptr(), e._version, e.data_ptr(), layout, torch.cuda.current_stream(v.device) if v.is_cuda else None
        known = self._packed.get(v)
        if known is None or known[0] is not e or known[1] != state:
            known = self._packed[v] = (e, state, self.pack(v, e, layout))
        return known[2]

    @staticmethod
    def pack(v: Tensor, e: Tensor, layout: str) -> Tensor:
        return torch._cslt_compress(_dense(v, e, layout))


BACKENDS: list[Backend] = [CuSparseLt(), Cutlass()]
_verdicts: dict[tuple, str] = {}                            # (name, dtype, layout, device) -> why it is left alone, or nothing
_lock = threading.Lock()


def choose(problem: Problem) -> Choice:
    """The backend for this problem, and why."""
    if problem.device.type == "cuda" and problem.device.index is None and torch.cuda.is_available():
        problem = problem._replace(device=torch.device("cuda", torch.cuda.current_device()))
    if min(problem.rows, problem.cols, problem.n) < DENSE_BELOW:
        return Choice("dense", f"a side of [{problem.rows}, {problem.cols}] @ [{problem.cols}, {problem.n}] is below {DENSE_BELOW}")
    reasons = []
    for backend in BACKENDS:
        why = backend.refuses(problem) or _verdict(backend, problem)
        if not why:
            return Choice(backend.name, "; ".join([*reasons, f"{backend.name}: passed its self-test"]))
        reasons.append(f"{backend.name}: {why}")
    return Choice("dense", "; ".join(reasons) or "there is no backend")


def product(v: Tensor, e: Tensor, b: Tensor, bias: Tensor | None, layout: str, out_dtype: torch.dtype) -> Tensor:
    """`W @ b + bias[:, None]` by the backend that `choose` names."""
    problem = Problem(v.shape[0], b.shape[0], b.shape[1], v.dtype, layout, out_dtype, v.device)
    name = choose(problem).backend
    for backend in BACKENDS:
        if backend.name == name:
            return backend.product(v, e, b, None if bias is None else bias.to(b.dtype), problem)
    return dense_product(v, e, b, bias, layout, out_dtype)


def dense_product(v: Tensor, e: Tensor, b: Tensor, bias: Tensor | None, layout: str, out_dtype: torch.dtype) -> Tensor:
    """W unpacked and multiplied."""
    w = _dense(v, e, layout)
    if out_dtype == b.dtype:
        return w @ b if bias is None else torch.addmm(bias.to(b.dtype)[:, None], w, b)
    out = torch.mm(w, b, out_dtype=out_dtype) if b.is_cuda else w.to(out_dtype) @ b.to(out_dtype)
    return out if bias is None else out + bias[:, None].to(out_dtype)


def _dense(v: Tensor, e: Tensor, layout: str) -> Tensor:
    return torch.ops.sparsekern.sp24_decompress(v, e, [v.shape[0], 2 * v.shape[1]], layout=layout)


def _verdict(backend: Backend, problem: Problem) -> str:
    key = (backend.name, problem.dtype, problem.layout, problem.device)
    with _lock:
        if key not in _verdicts:
            if problem.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                return "not tested yet, which cannot be done while a CUDA graph is captured"
            with torch.autocast(problem.device.type, enabled=False):        # the dense products would come in its type
                _verdicts[key] = _self_test(backend, problem)
            if _verdicts[key]:
                warnings.warn(f"sp24_mm: {backend.name} is not used for {problem.dtype} on {problem.device}: {_verdicts[key]}", stacklevel=4)
        return _verdicts[key]


@torch.no_grad()
def _self_test(backend: Backend, problem: Problem) -> str:
    """Products with b in either order, with and without a bias; why they do not count, or nothing."""
    rows, cols, n = 128, 256, 136
    draw = torch.Generator().manual_seed(0)

    def whole(limit: int, *shape: int) -> Tensor:
        return torch.randint(-limit, limit + 1, shape, generator=draw).to(problem.dtype).to(problem.device)

    # At most 128 ones and a bias of 8 in a sum: exact in bfloat16, too.
    v, e, _, _ = torch.ops.sparsekern.sp24_compress(whole(1, rows, cols), layout=problem.layout)
    b, bias = whole(1, cols, n), whole(8, rows)
    small = problem._replace(rows=rows, cols=cols, n=n)
    try:
        for given in (b, b.t().contiguous().t()):
            for add in (None, bias):
                got = backend.product(v, e, given, add, small)
                want = dense_product(v, e, given, add, problem.layout, problem.out_dtype)
                if got.shape != want.shape or got.dtype != want.dtype:
                    return f"it gave {got.dtype} {list(got.shape)} where {want.dtype} {list(want.shape)} was due"
                if wrong := int((got != want).sum()):
                    return f"{wrong} of {want.numel()} elements of a product of whole numbers are wrong"
    except Exception as error:                              # of whatever kind: it cannot be used
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return ""
