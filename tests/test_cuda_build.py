"""The CUDA half of the extension where there is no GPU: it is registered, it is linked, and it refuses what it must not read."""
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparsekern import doctor, ops
from sparsekern._native import native

ROOT = Path(__file__).parent.parent
# Not what the reference serves on CUDA, nor, as sp24_mm, library calls put together in Python.
OPS = [name for name in ops.op_names() if not name.startswith("sparse_conv2d") and name != "sp24_mm"]
SCALARS = {"weight_decay": 0.0, "momentum": 0.0, "lr": 0.1, "dampening": 0.0, "nesterov": False, "maximize": False, "is_first_step": False}
pytestmark = pytest.mark.skipif(not native.cuda, reason=f"built without CUDA ({native.reason or 'no nvcc at build time'})")


def on_cuda_key(name, *args, **kwargs):
    """Calls the kernel of the CUDA key whatever the tensors are: the checks of the binding run without a GPU."""
    packet, _, overload = name.partition(".")
    op = getattr(getattr(torch.ops.sparsekern, packet), overload or "default")
    return op.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), *args, **kwargs)


@pytest.mark.parametrize("name", OPS)
def test_native_kernel_holds_the_cuda_key(name):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"sparsekern::{name}", "CUDA")
    assert "cuda" in ops.implementations(name)


def test_current_stream_is_linked_where_torch_has_cuda():
    # Without it every launch would fail on a machine with a GPU, and nothing else here would notice.
    assert native.library.sparsekern_torch_has_cuda() == (torch.version.cuda is not None)


@pytest.mark.parametrize("name", OPS)
def test_host_tensors_on_the_cuda_key_are_refused(name):
    arguments, options = doctor.MAKERS[name](torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=rf"{name.partition('.')[0]}: .*expected .* on a CUDA device.*got cpu.*\.to\(\)"):
        on_cuda_key(name, *arguments, **options)


def test_the_argument_on_the_host_is_named():
    x, mask = [torch.zeros(3)], [torch.ones(3, dtype=torch.bool)]
    with pytest.raises(ValueError, match=r"masked_sgd_: params\[0\]: expected a tensor on a CUDA device.*got cpu.*\.to\(\)"):
        on_cuda_key("masked_sgd_", x, x, [], mask, **SCALARS)
    with pytest.raises(ValueError, match=r"masked_sgd_: params\[0\]: expected a tensor on a CUDA device"):
        on_cuda_key("masked_sgd_.tensor_lr", x, x, [], mask, **SCALARS | {"lr": torch.tensor(0.1)})
    with pytest.raises(ValueError, match=r"packed_sgd_: values\[0\]: expected a tensor on a CUDA device"):
        on_cuda_key("packed_sgd_", x, x, [], [None], **SCALARS)
    with pytest.raises(ValueError, match='masked_sgd_: outside: expected "keep" or "zero"'):
        on_cuda_key("masked_sgd_", [], [], [], [], **SCALARS, outside="half")


def test_empty_lists_need_no_device():
    assert on_cuda_key("masked_sgd_", [], [], [], [], **SCALARS) is None
    assert on_cuda_key("packed_sgd_", [], [], [], [], **SCALARS) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_torch_says_so():
    with pytest.raises((RuntimeError, AssertionError), match="(?i)cuda|nvidia"):
        ops.masked_sgd_([torch.zeros(3, device="cuda")], [], [], [None], lr=0.1)


def test_kernels_stay_within_their_budgets():
    spec = importlib.util.find_spec("triton")
    if not shutil.which("cuobjdump") and not Path("/usr/local/cuda/bin/cuobjdump").exists() and spec is None:
        pytest.skip("no cuobjdump: neither a full CUDA toolkit nor triton is installed")
    done = subprocess.run([sys.executable, str(ROOT / "scripts/check_cuda_resources.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
