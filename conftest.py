"""Switches and fixtures shared by tests and benchmarks."""
import os
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")     # before torch: on a busy machine spinning threads starve each other

import pytest  # noqa: E402
import torch  # noqa: E402

GPU = torch.cuda.is_available()
if not GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")      # before triton is imported: its decorator decides

from sparsekern._native import native  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--benchmark", action="store_true", help="run benchmarks/ instead of tests/ and print latency reports")
    # Here and not in benchmarks/conftest.py, which is read too late when only --benchmark is given.
    parser.addoption("--benchmark-report", metavar="FILE", help="write the rows and targets of the benchmarks as JSON")
    parser.addoption("--race-rounds", type=int, default=30, help="timed repetitions of each contender (default 30)")
    parser.addoption("--seconds", type=float, default=float("inf"), help="tests that would begin later than this are skipped: left out (time)")


def pytest_configure(config):
    config.deadline = time.monotonic() + config.getoption("--seconds")
    if config.getoption("--benchmark") and config.args == config.getini("testpaths"):
        config.args[:] = ["benchmarks"]


def pytest_collection_modifyitems(items):
    if not GPU:
        for item in items:
            if item.get_closest_marker("gpu"):         # not `in keywords`: a folder may be called gpu
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_runtest_setup(item):
    if time.monotonic() > item.config.deadline:
        pytest.skip("left out (time)")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Every device there is; the others skip with a reason."""
    return torch.device(request.param)


@pytest.fixture(params=["scalar", "avx2", "avx512"])
def isa(request):
    """Runs the test once per CPU instruction set and goes back to the best one."""
    if not native.available:
        pytest.skip(f"compiled kernels are {native.reason}")
    try:
        native.set_isa(request.param)
    except ValueError:
        pytest.skip(f"this CPU has no {request.param}")
    yield request.param
    native.set_isa("auto")


@pytest.fixture(autouse=True)
def seed():
    """Every test starts from the same random state."""
    torch.manual_seed(0)
