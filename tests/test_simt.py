"""The CUDA kernels' sources on the CPU: the emulator itself, how lists are laid over a grid, and each kernel against a loop."""
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CXX = shutil.which("g++") or shutil.which("c++")
pytestmark = pytest.mark.skipif(CXX is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """program(name): builds tests/native/<name> once, without torch or CUDA, and returns its path."""
    folder, built = tmp_path_factory.mktemp("native"), {}

    def build(name: str) -> Path:
        if name not in built:
            target = folder / Path(name).stem
            command = [CXX, "-x", "c++", "-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-unknown-pragmas",
                       "-Wno-maybe-uninitialized", "-Werror", "-I", ROOT / "csrc", ROOT / "tests/native" / name, "-o", target]
            subprocess.run(command, check=True, timeout=600)
            built[name] = target
        return built[name]

    return build


def run(path: Path, *arguments: str) -> str:
    done = subprocess.run([str(path), *arguments], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# The order of the fibers must not matter: 0 runs them in order, other seeds shuffle them.
@pytest.mark.parametrize("seed", ["0", "1", "12345"])
def test_emulator(program, seed):
    assert run(program("simt_check.cpp"), seed).endswith("ok\n")


@pytest.mark.parametrize("seed", ["0", "12345"])
@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "tests/native").glob("*_check.cu")))
def test_kernels(program, name, seed):
    assert run(program(name), seed).startswith("ok: ")


@pytest.mark.parametrize("name", ["launch_plan_check.cpp", "csr_cost_check.cpp", "sddmm_cost_check.cpp", "nm_cost_check.cpp"])
def test_plans(program, name):
    assert run(program(name)).endswith("ok\n")
