"""The list of GPU kernels: which sources define them, what proves them, and when a GPU counts as having run one."""
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SPEC = importlib.util.spec_from_file_location("kernel_table", ROOT / "scripts/kernel_table.py")
table = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(table)
HOMES = table.homes()


def test_every_global_function_has_a_home():
    declared = sum(path.read_text().count("__global__ ") for path in (ROOT / "csrc/cuda").glob("*.cuh"))
    assert len(HOMES) == declared >= 2, f"{declared} __global__ functions, {len(HOMES)} names that end in _kernel"
    assert HOMES["masked_sgd_kernel"].name == HOMES["packed_sgd_kernel"].name == "masked_sgd.cuh"


@pytest.mark.parametrize("kernel", sorted(HOMES))
def test_every_kernel_is_emulated(kernel):
    assert table.emulated(HOMES[kernel]), f"no program of tests/native and no file of tests/cuda runs {HOMES[kernel].name}"


def test_what_proves_a_kernel():
    home = HOMES["masked_sgd_kernel"]
    assert {"masked_sgd_", "packed_sgd_"} <= table.ops_of(home)
    assert {"tests/native/masked_sgd_check.cu", "tests/cuda/test_masked_sgd_cuda.py"} <= set(table.emulated(home))
    assert "tests/gpu/test_masked_sgd_gpu.py" in table.gpu_tests({"masked_sgd_"}) and table.gpu_tests(set()) == []


def test_when_a_gpu_has_run_a_kernel():
    counts = {"tests": 5, "failures": 0, "errors": 0, "skipped": 0}
    runs = table.passed({"commit": "0123456789abcdef", "rows": [
        {"name": "a_check", "ok": True}, {"name": "b_check", "ok": False}, {"name": "c_check", "skipped": "left out (time)"},
        {"name": "tests/gpu/test_a.py", "ok": True, "counts": counts},
        {"name": "tests/gpu/test_b.py", "ok": True, "counts": counts | {"skipped": 5}}]})
    assert runs == {"a_check": "0123456789", "tests/gpu/test_a.py": "0123456789"}
    assert table.on_a_gpu(runs, ["tests/native/a_check.cu"]) == "0123456789" == table.on_a_gpu(runs, ["x", "tests/gpu/test_a.py"])
    assert table.on_a_gpu(runs, ["tests/native/b_check.cu", "tests/gpu/test_b.py"]) == "not yet" == table.on_a_gpu({}, [])


def test_variants_share_a_line(monkeypatch):
    kernels = {("one", "sm_80"): {"REG": 40, "STACK": 0, "SHARED": 16, "LOCAL": 0},
               ("two", "sm_80"): {"REG": 32, "STACK": 8, "SHARED": 64, "LOCAL": 0},
               ("one", "sm_90a"): {"REG": 44, "STACK": 0, "SHARED": 16, "LOCAL": 0}}
    monkeypatch.setattr(table.cuda, "gather", lambda afresh: (kernels, {"two": 4}))
    monkeypatch.setattr(table.cuda, "short_names", lambda symbols: {"one": "masked_sgd_kernel<float, 64>", "two": "masked_sgd_kernel<float, 32>"})
    row, = table.cuda_rows(True, {"masked_sgd_check": "0123456789"})
    assert (row["variants"], row["spills"], row["stack"], row["gpu"]) == (2, 4, 8, "0123456789")
    assert row["targets"] == {"sm_80": [40, 64], "sm_90a": [44, 16]}
    text = table.markdown([row], "command")
    assert "1 CUDA and 0 Triton kernels; 1 of them have run on a GPU" in text and "Compiled but not emulated: none." in text
    assert "| masked_sgd_kernel | csrc/cuda/masked_sgd.cuh | 2 | 40, 64 | 44, 16 | 4, 8 | masked_sgd_check, " in text
    assert "| no | not yet |" in table.markdown([row | {"emulated": [], "gpu": "not yet"}], "command")
