"""The build's decisions, and the package without compiled kernels."""
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def setup_module():
    spec = importlib.util.spec_from_file_location("sparsekern_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def toolkit(tmp_path):
    for name in ("bin/nvcc", "include/cuda_runtime.h"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def without_cuda(setup_module, monkeypatch):
    """A machine with no toolkit anywhere, whatever this one has."""
    monkeypatch.setattr(setup_module.shutil, "which", lambda name: None)
    monkeypatch.setattr(setup_module.Path, "exists", lambda self: False)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)


def test_cuda_is_found_by_cuda_home(setup_module, monkeypatch, toolkit):
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    monkeypatch.setenv("SPARSEKERN_CUDA", "auto")
    assert setup_module.cuda_home() == str(toolkit)


def test_cuda_0_never_builds_it(setup_module, monkeypatch, toolkit):
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    monkeypatch.setenv("SPARSEKERN_CUDA", "0")
    assert setup_module.cuda_home() is None


def test_cuda_auto_without_toolkit_builds_for_the_cpu(setup_module, monkeypatch):
    without_cuda(setup_module, monkeypatch)
    monkeypatch.setenv("SPARSEKERN_CUDA", "auto")
    assert setup_module.cuda_home() is None


def test_cuda_1_without_toolkit_is_a_clear_error(setup_module, monkeypatch):
    without_cuda(setup_module, monkeypatch)
    monkeypatch.setenv("SPARSEKERN_CUDA", "1")
    with pytest.raises(SystemExit, match="SPARSEKERN_CUDA=1 asks for the CUDA kernels, but no CUDA toolkit was found"):
        setup_module.cuda_home()


def test_unknown_switch_is_a_clear_error(setup_module, monkeypatch):
    monkeypatch.setenv("SPARSEKERN_CUDA", "yes")
    with pytest.raises(SystemExit, match="expected auto, 0 or 1, got 'yes'"):
        setup_module.cuda_home()


def test_a_lone_nvcc_wrapper_is_not_a_toolkit(setup_module, monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/nvcc").touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("SPARSEKERN_CUDA", "auto")
    assert setup_module.cuda_home() != str(tmp_path)


def test_references_serve_without_compiled_kernels():
    code = """
import torch, sparsekern
from sparsekern import ops
from sparsekern._native import native
assert not native.available and "SPARSEKERN_NATIVE=0" in native.reason
param = torch.ones(4)
ops.masked_sgd_([param], [torch.ones(4)], [], [torch.tensor([True, False, True, False])], lr=0.5)
assert param.tolist() == [0.5, 1.0, 0.5, 1.0]
mask = torch.rand(70) < 0.5
assert torch.equal(ops.unpack_mask(ops.pack_mask(mask), mask.shape), mask)
assert "cpu" not in ops.implementations("masked_sgd_")
print("served")
"""
    answer = subprocess.run([sys.executable, "-c", code], env=os.environ | {"SPARSEKERN_NATIVE": "0"}, capture_output=True, text=True)
    assert answer.stdout.strip() == "served", answer.stderr
