"""sparsekern doctor: what is live on this machine and why the rest is not, and every op checked against its reference."""
import functools
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable

import torch
from torch import Tensor

from sparsekern import __version__, ops
from sparsekern._machine import cpu_name
from sparsekern._native import native
from sparsekern.nn import SparseConv2d, SparseLinear
from sparsekern.nn.choose import choose_backend
from sparsekern.ops._register import has_kernel, triton_reason
from sparsekern.testing import assert_close, random_csr

SHAPES = [(33, 5), (), (1025,), (2, 3, 5, 7), (0, 4)]      # odd sizes, a scalar, an empty one
SGD = {"weight_decay": 0.01, "momentum": 0.9, "lr": 0.1, "dampening": 0.0, "nesterov": True, "maximize": False, "is_first_step": False}


def doctor(say: Callable[[str], None] = print) -> int:
    """Print the findings; 1 if an op disagrees with its reference, else 0."""
    say(f"sparsekern {__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    for name, finding in environment():
        say(f"  {name:<12} {finding}")
    devices = [torch.device("cpu")] + ([torch.device("cuda")] if torch.cuda.is_available() else [])
    started, faults = time.perf_counter(), 0
    say("self-test of every op against its reference")
    for name in ops.op_names():
        findings = [finding for device in devices for finding in check(name, device)]
        faults += sum(not agrees for _, agrees, _ in findings)
        good = ", ".join(where for where, agrees, _ in findings if agrees)
        say(f"  {name:<32} " + (f"{good} ok" if good else "" if findings else "reference only" if name in MAKERS else "no self-test"))
        for where, agrees, reason in findings:
            if not agrees:
                say(f"    {where}: DISAGREES: {reason}")
    seconds = time.perf_counter() - started
    say(f"{faults} disagree{'s' if faults == 1 else ''} with the reference ({seconds:.1f} s)" if faults else f"all agree ({seconds:.1f} s)")
    say('sparse and dense product of typical layers, forward and backward, and which one sparsify(backend="auto") takes here')
    for layer, finding in products():
        say(f"  {layer:<66} {finding}")
    return 1 if faults else 0


def products() -> list[tuple[str, str]]:
    """(layer, times of both products and the choice) for a few typical layers."""
    found = []
    layers = ((SparseLinear.from_shape(1024, 1024, sparsity=0.9), (128, 1024)),
              (SparseConv2d.from_shape(64, 64, 3, sparsity=0.95, padding=1), (16, 64, 16, 16)),
              (SparseLinear.from_shape(64, 64, sparsity=0.5), (32, 64)))
    for layer, shape in layers:
        choice = choose_backend(layer, shape)
        why = choice.reason.partition("]: ")[2] + ("" if native.available else " (the compiled kernels are not live)")
        name = f"{type(layer).__name__} {layer.rows} x {layer.cols}, sparsity {layer.sparsity:.2f}, input {list(shape)}"
        found.append((name, f"sparse {choice.sparse_ms:.2f} ms, dense {choice.dense_ms:.2f} ms: {why}"))
    return found


def environment() -> list[tuple[str, str]]:
    """(what, its state) for every backend and tool."""
    found = [("CPU", f"{cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"), ("references", "live")]
    state = f"live, {native.isa}, built against torch {native.torch}" if native.available else f"not live: {native.reason}"
    found.append(("C++ kernels", state))
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found.append(("GPU", f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.total_memory / 2**30:.0f} GiB"))
    else:
        reason = "this torch is a CPU build" if torch.version.cuda is None else f"torch {torch.__version__} finds no usable GPU or driver"
        found.append(("GPU", f"none: {reason}"))
    if native.cuda:
        state = f"built for {native.arches}" + ("" if torch.cuda.is_available() else "; not live: no GPU")
    else:
        state = "not live: not built (needs nvcc at install time; SPARSEKERN_CUDA=1 says what is missing)"
    found.append(("CUDA kernels", state))
    reason = triton_reason()
    if reason is None:
        import triton
        state = f"{triton.__version__}, " + ("live" if torch.cuda.is_available() else "not live: no GPU")
        if os.environ.get("TRITON_INTERPRET") == "1":
            state += " (TRITON_INTERPRET=1: interpreted)"
    else:
        state = f"not live: {reason}"
    found.append(("Triton", state))
    found.append(("nvcc", _nvcc()))
    return found


def check(name: str, device: torch.device) -> list[tuple[str, bool, str]]:
    """(implementation, agrees, why not) for each compiled implementation of an op that runs on `device`."""
    if name not in MAKERS:
        return []
    results = []
    for implementation, function in ops.implementations(name).items():
        if implementation not in (("cpu",) if device.type == "cpu" else ("cuda", "triton")):
            continue
        if implementation == "cuda" and not has_kernel(name, "CUDA"):
            continue
        try:
            want, got = _run(ops.implementations(name)["reference"], name, device), _run(function, name, device)
            reason = _compare(got, want)
        except Exception as error:                         # a kernel that does not even run is a finding, too
            reason = f"{type(error).__name__}: {error}"
        results.append((implementation, reason == "", reason))
    return results


@torch.no_grad()
def _run(function: Callable, name: str, device: torch.device) -> list[Tensor]:
    """What the op returns and what it leaves in its arguments."""
    arguments, options = MAKERS[name](torch.Generator().manual_seed(0))
    arguments, options = _to(arguments, device), _to(options, device)
    returned = function(*arguments, **options)
    return _tensors([returned, arguments, options])


def _compare(got: list[Tensor], want: list[Tensor]) -> str:
    if len(got) != len(want):
        return f"{len(got)} tensors, expected {len(want)}"
    try:
        for one, other in zip(got, want):
            if other.is_floating_point():
                assert_close(one, other, dtype=other.dtype, reduction=4096)
            elif one.shape != other.shape or one.dtype != other.dtype or not torch.equal(one, other):
                return f"a {other.dtype} result of shape {list(other.shape)} differs"
    except AssertionError as error:
        return str(error)
    return ""


def _tensors(value) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for entry in values for tensor in _tensors(entry)]


def _to(value, device: torch.device):
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _to(entry, device) for key, entry in value.items()}
    return type(value)(_to(entry, device) for entry in value) if isinstance(value, list | tuple) else value


# ---- inputs for every op ----

def _floats(draw: torch.Generator) -> list[Tensor]:
    return [torch.randn(shape, generator=draw) for shape in SHAPES]


def _masks(draw: torch.Generator, shapes=None) -> list[Tensor]:
    return [torch.rand(shape, generator=draw) < 0.4 for shape in shapes or SHAPES]


def _bits(draw):
    return [ops.pack_mask(mask) for mask in _masks(draw)]


def _update(draw, *, projected: bool, tensor_lr: bool):
    """params, gradient(s), momenta, masks in both spellings and with a dense one, and the numbers of SGD."""
    masks = _masks(draw)
    masks[2], masks[3] = ops.pack_mask(masks[2]), torch.empty(0, dtype=torch.bool)
    lists = [_floats(draw) for _ in range(4 if projected else 3)]
    numbers = SGD | ({"lr": torch.tensor(0.1)} if tensor_lr else {})
    return [*lists, masks], numbers | ({"per_tensor": True, "stats": torch.zeros(len(SHAPES), 4)} if projected else {})


def _tasks(draw):
    """Gradients of three tasks, the second against the first."""
    first, noise, third = _floats(draw), _floats(draw), _floats(draw)
    return first + [b - a for a, b in zip(first, noise)] + third


def _channels(draw):
    """Weights and two lists of masks in every spelling."""
    shapes = [(33, 5), (7, 1025), (2, 3, 5, 7), (0, 4), (6,)]
    first, second = _masks(draw, shapes), _masks(draw, shapes)
    first[1], second[2] = ops.pack_mask(first[1]), torch.empty(0, dtype=torch.bool)
    return [[torch.randn(shape, generator=draw) for shape in shapes], first, second], {"beta": 0.75}


def _packed(draw):
    """Packed values of two layers, the second one whole, with gradients, momenta and positions."""
    gradient = torch.randn(40, generator=draw)
    index = torch.randperm(40, generator=draw)[:13].sort().values
    return [[torch.randn(13, generator=draw), torch.randn(7, generator=draw)], [gradient, torch.randn(7, generator=draw)],
            [torch.randn(13, generator=draw), torch.randn(7, generator=draw)], [index, None]], dict(SGD)


def _prune(draw, k):
    shapes = [(33, 5), (1025,), (2, 3, 5, 7)]
    floats = [[torch.randn(shape, generator=draw) for shape in shapes] for _ in range(2)]
    return [_masks(draw, shapes), *floats, k, k], {}


def _csr(draw, op):
    """A [37, 50] matrix at 90 % with its plan, as the CSR products take it."""
    crow, col, val = random_csr(37, 50, 0.9, seed=int(torch.randint(1000, (), generator=draw)))
    row_order, *transposed = ops.csr_plan(crow, col, 37, 50)
    x, wide, tall, bias = (torch.randn(shape, generator=draw) for shape in ((19, 50), (19, 37), (37, 45), (37,)))
    return {"csr_plan": ([crow, col, 37, 50], {}),
            "csr_spmm": ([crow, col, val, x.t().contiguous(), 37, 50], {"row_order": row_order, "bias": bias}),
            "csr_spmm_t": ([*transposed, val, tall, 37, 50], {}),
            "csr_linear": ([x, crow, col, val, *transposed, bias, 37], {}),
            "csr_linear_backward": ([x, wide, crow, col, val, *transposed, True, True, True], {})}[op]


def _convolution(draw, which):
    """A grouped, strided, padded, dilated convolution; two of x, val and grad_y, as the op named asks."""
    crow, col, val = random_csr(8, 3 * 3 * 2, 0.6, seed=1)
    x, grad_y = torch.randn(3, 6, 9, 17, generator=draw), torch.randn(3, 8, 5, 9, generator=draw)
    options = {"stride": [2, 2], "padding": [2, 1], "dilation": [2, 1], "groups": 2}
    return {"forward": [x, crow, col, val, torch.randn(8, generator=draw), [3, 2]], "input": [grad_y, crow, col, val, [3, 6, 9, 17], [3, 2]],
            "weight": [x, grad_y, crow, col, [3, 2]]}[which], options


def _sparse(draw, *, samples: bool):
    """Weights of rows and columns, among them hopeless ones, and a random pattern of 37 x 23; or samples and that pattern."""
    crow, col, _ = random_csr(37, 23, 0.8)
    if not samples:
        return [torch.randn(37, generator=draw), torch.rand(23, generator=draw), crow, col]
    return [torch.randint(37, (900,), generator=draw, dtype=torch.int32), torch.randint(23, (900,), generator=draw, dtype=torch.int32), crow, col, 23]


def _pattern(draw, op):
    """A [37, 50] matrix at 80 %, and what the ops that make, check and change patterns and the sampled products take with it."""
    dense = torch.randn(37, 50, generator=draw) * (torch.rand(37, 50, generator=draw) < 0.2)
    crow, col, val = ops.csr_from_mask(dense != 0, dense)
    rows, cols = (dense == 0).nonzero().int().t().contiguous()
    drop, take = torch.rand(col.numel(), generator=draw) < 0.3, torch.rand(rows.numel(), generator=draw) < 0.1
    a, b = torch.randn(37, 70, generator=draw), torch.randn(70, 50, generator=draw).t()
    return {"csr_from_mask": ([dense != 0, dense], {}),
            "csr_validate": ([crow, col.roll(1), 37, 50, val], {}),
            "csr_replace": ([crow, col, [val, val.bfloat16()], drop, rows, cols, take], {"nnz": int(col.numel() - drop.sum() + take.sum())}),
            "csr_sddmm": ([crow, col, a, b], {}),
            "coo_sddmm": ([rows, cols, torch.tensor(900), a, b], {})}[op]


def _nm(draw, *, packed: bool):
    """A [37, 96] matrix with 2 of 8 kept; or what nm_pack makes of it, a dense operand and a bias."""
    x = torch.randn(37, 96, generator=draw)
    x = torch.where(ops.nm_mask(x, 2, 8), x, 0.0)
    if not packed:
        return [x, 2, 8], {}
    b, bias = torch.randn(96, 45, generator=draw), torch.randn(37, generator=draw)
    return [*ops.nm_pack(x, 2, 8), b, 2, 8, 96], {"bias": bias}


def _sp24(draw, op):
    """A [64, 192] matrix in bfloat16 and a mask that is 2:4 both ways; or what is packed of it, a dense operand and a bias."""
    x = torch.randn(64, 192, generator=draw).bfloat16()
    mask = ops.nm_mask_transposable(x) & (torch.rand(x.shape, generator=draw) < 0.9)
    if op == "sp24_compress":
        return [x], {"mask": mask, "both": True}
    v, e = ops.sp24_compress(x, mask=mask)[:2]
    b, bias = torch.randn(192, 40, generator=draw).bfloat16(), torch.randn(64, generator=draw)
    return ([v, e, list(x.shape)], {}) if op == "sp24_decompress" else ([v, e, b], {"bias": bias})


_SEED = torch.tensor(7)
_K = [20, 1, 300, 0, 0]
MAKERS: dict[str, Callable[[torch.Generator], tuple[list, dict]]] = {
    **{op: functools.partial(_csr, op=op) for op in ("csr_plan", "csr_spmm", "csr_spmm_t", "csr_linear", "csr_linear_backward")},
    **{op: functools.partial(_sp24, op=op) for op in ("sp24_compress", "sp24_decompress", "sp24_mm")},
    **{op: functools.partial(_pattern, op=op) for op in ("csr_from_mask", "csr_validate", "csr_replace", "csr_sddmm", "coo_sddmm")},
    "pack_mask": lambda draw: ([_masks(draw)[0]], {}),
    "unpack_mask": lambda draw: ([_bits(draw)[0], list(SHAPES[0])], {}),
    "mask_stats": lambda draw: ([_masks(draw), _masks(draw)], {}),
    "masked_weight": lambda draw: ([_floats(draw)[0], _masks(draw)[0]], {}),
    "masked_weight.list": lambda draw: ([_floats(draw), _masks(draw)], {}),
    "channel_scores": _channels,
    "is_clean": lambda draw: ([_floats(draw), _floats(draw), _masks(draw)], {}),
    "masked_sgd_": lambda draw: _update(draw, projected=False, tensor_lr=False),
    "masked_sgd_.tensor_lr": lambda draw: _update(draw, projected=False, tensor_lr=True),
    "packed_sgd_": _packed,
    "project_conflict_": lambda draw: ([_floats(draw), _floats(draw)], {"masks": _masks(draw), "stats": torch.zeros(1, 4)}),
    "project_conflict_sgd_": lambda draw: _update(draw, projected=True, tensor_lr=False),
    "project_conflict_sgd_.tensor_lr": lambda draw: _update(draw, projected=True, tensor_lr=True),
    "task_gram": lambda draw: ([_tasks(draw), 3], {}),
    "pcgrad_combine": lambda draw: ([_tasks(draw), 3, torch.tensor([[2, 1], [0, 2], [1, 0]])], {"reduction": "mean"}),
    "sparse_conv2d": lambda draw: _convolution(draw, "forward"),
    "sparse_conv2d_input_grad": lambda draw: _convolution(draw, "input"),
    "sparse_conv2d_weight_grad": lambda draw: _convolution(draw, "weight"),
    "topk_mask": lambda draw: ([_floats(draw), torch.tensor(_K)], {}),
    "topk_mask.int_k": lambda draw: ([_floats(draw), [400]], {"global_": True}),
    "select_threshold": lambda draw: ([_floats(draw), torch.tensor(_K)], {}),
    "select_threshold.int_k": lambda draw: ([_floats(draw), [400]], {"global_": True}),
    "prune_regrow_": lambda draw: _prune(draw, torch.tensor([9, 40, 0])),
    "prune_regrow_.int_k": lambda draw: _prune(draw, [9, 40, 0]),
    "nm_mask": lambda draw: ([torch.randn(33, 70, generator=draw), 2, 4], {}),
    "nm_apply_": lambda draw: ([torch.randn(5, 13, 7, generator=draw), 3, 8], {"dim": 1}),
    "nm_mask_transposable": lambda draw: ([torch.randn(12, 268, generator=draw)], {}),
    "nm_pack": lambda draw: _nm(draw, packed=False),
    "nm_spmm": lambda draw: _nm(draw, packed=True),
    "activity": lambda draw: ([torch.randn(2, 3, 9, 7, generator=draw)],
                              {"signed": True, "seed": _SEED, "kernel_size": [3, 3], "stride": [2, 1], "padding": [1, 1]}),
    "sample_product": lambda draw: ([*_sparse(draw, samples=False)[:2], 500], {"seed": _SEED}),
    "csr_setdiff": lambda draw: (_sparse(draw, samples=True), {}),
    "gse_candidates": lambda draw: ([*_sparse(draw, samples=False), 300], {"seed": _SEED, "rounds": 3}),
}


# ---- the machine ----

def _nvcc() -> str:
    path = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if path is None:
        return "not found (needed only to build the CUDA kernels)"
    try:
        text = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"{path} does not run: {error}"
    release = next((line.strip() for line in text.splitlines() if "release" in line), "")
    return f"{path}, {release}"
