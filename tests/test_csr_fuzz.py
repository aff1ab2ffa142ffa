"""Malformed patterns: 100,000 of them at the torch-free cores under sanitizers, and more at the public ops: errors, never a crash."""
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.cpp_extension import include_paths

from sparsekern import ops
from sparsekern.testing import random_csr

ROOT = Path(__file__).parent.parent
CXX = shutil.which("g++") or shutil.which("c++")
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The fuzzer, built with the sanitizers; torch's headers give the half types, nothing of torch is linked."""
    if CXX is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "probe.cpp").write_text("int main() {}\n")
    if subprocess.run([CXX, *SANITIZE, folder / "probe.cpp", "-o", folder / "probe"], capture_output=True).returncode != 0:
        pytest.skip("the compiler has no sanitizers")
    headers = [word for path in include_paths() for word in ("-isystem", path)]
    subprocess.run([CXX, "-std=c++20", "-O0", "-g1", *SANITIZE, "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-maybe-uninitialized", "-Werror",
                    "-I", ROOT / "csrc", *headers, ROOT / "tests/native/csr_fuzz.cpp", "-o", folder / "csr_fuzz"], check=True, timeout=600)
    return folder / "csr_fuzz"


@pytest.mark.parametrize("seed", [1, 2])
def test_sanitizers_report_nothing(program, seed):
    done = subprocess.run([program, "50000", str(seed)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and not done.stderr, done.stdout[-2000:] + done.stderr[-4000:]
    words = done.stdout.split()
    inputs, malformed, refused = int(words[0]), int(words[2]), int(words[4])
    assert words[-1] == "ok" and malformed == 50_000
    assert inputs - refused > 40_000                        # those that are safe to read by, in order or not, were computed with, too


# ---- the public ops ----

WILD = [-(2**31), -1, 2**31 - 1, 2**20]


@st.composite
def patterns(draw):
    """(crow, col, rows, cols, malformed) with any of the faults, or none."""
    rows, cols = draw(st.integers(0, 5)), draw(st.integers(0, 8))
    crow, col, _ = random_csr(rows, cols, draw(st.sampled_from([0.0, 0.4, 0.9])), seed=draw(st.integers(0, 50)), index64=draw(st.booleans()))
    for _ in range(draw(st.integers(0, 2))):
        fault, value = draw(st.sampled_from(["column", "pointer", "fewer", "more", "shape", "order"])), draw(st.sampled_from([*WILD, *range(9)]))
        if fault == "column" and col.numel():
            col[draw(st.integers(0, col.numel() - 1))] = value
        elif fault == "pointer" and crow.numel():
            crow[draw(st.integers(0, crow.numel() - 1))] = value
        elif fault == "fewer":
            col = col[:draw(st.integers(0, col.numel()))].clone()
        elif fault == "more":
            crow = torch.cat([crow, crow[-1:]])
        elif fault == "shape":
            rows = draw(st.sampled_from([0, 1, min(rows + 1, 2**63 - 1), -1, 2**63 - 1]))         # beyond 64 bits torch itself refuses the number
        elif fault == "order":
            col = col.flip(0)
    return crow, col, rows, cols


def safe(crow, col, rows, cols) -> bool:
    """Whether reading by the pattern stays inside; order and duplicates do not matter for that."""
    pointers = crow.tolist()
    return (rows >= 0 and len(pointers) == rows + 1 and pointers[0] == 0 and pointers == sorted(pointers) and pointers[-1] == col.numel()
            and all(0 <= c < cols for c in col.tolist()))


@given(patterns())
@settings(max_examples=400, deadline=None)
def test_public_ops_raise_and_never_crash(pattern):
    crow, col, rows, cols = pattern
    good = safe(*pattern)
    height = max(0, min(rows, crow.numel()))
    val, a, b = torch.ones(col.numel()), torch.ones(height, 3), torch.ones(cols, 3)
    calls = {"csr_plan": lambda: ops.csr_plan(crow, col, rows, cols),
             "csr_spmm": lambda: ops.csr_spmm(crow, col, val, b, rows, cols),
             # The pattern as that of the transpose: W is [cols, rows], its W^T has `rows` rows.
             "csr_spmm_t": lambda: ops.csr_spmm_t(crow, col, torch.arange(col.numel(), dtype=torch.int32), val, b, cols, rows)}
    if height == rows:
        calls["csr_sddmm"] = lambda: ops.csr_sddmm(crow, col, a, b)
    for name, call in calls.items():
        try:
            call()
        except (ValueError, TypeError) as error:
            assert not good, f"{name} refuses a safe pattern: {error}"
        else:
            assert good, f"{name} takes a malformed pattern"
    none = torch.empty(0, dtype=torch.int32)
    if safe(crow, col, crow.numel() - 1, cols):
        assert ops.csr_setdiff(none, none, crow, col, cols)[2] == 0
    else:
        with pytest.raises((ValueError, TypeError)):
            ops.csr_setdiff(none, none, crow, col, cols)
    if good:
        assert torch.equal(ops.csr_sddmm(crow, col, a, b), torch.full((col.numel(),), 3.0))
    findings = ops.csr_validate(crow, col, rows, cols)
    sound = good and all(len(set(part)) == len(part) and part == sorted(part)
                         for part in (col[crow[r]:crow[r + 1]].tolist() for r in range(rows)))
    assert (findings[0] == 0) == sound
    if not sound:
        with pytest.raises(ValueError, match="check_csr: (crow|col): expected"):
            ops.check_csr(crow, col, rows, cols)


@given(patterns(), st.data())
@settings(max_examples=200, deadline=None)
def test_replace_and_places_raise_and_never_crash(pattern, data):
    crow, col, rows, cols = pattern
    places = data.draw(st.lists(st.tuples(st.sampled_from([*WILD, 0, 1, 2]), st.sampled_from([*WILD, 0, 1, 5]), st.booleans()), max_size=5))
    row, column = (torch.tensor([p[i] for p in places], dtype=torch.int32) for i in (0, 1))
    take = torch.tensor([p[2] for p in places], dtype=torch.bool)
    drop = torch.zeros(col.numel(), dtype=torch.bool)
    drop[:data.draw(st.integers(0, 3))] = True
    try:
        new_crow, new_col, (new,) = ops.csr_replace(crow, col, [torch.arange(col.numel())], drop, row, column, take)
    except (ValueError, TypeError):
        pass
    else:
        assert safe(crow, col, crow.numel() - 1, 2**31) and safe(new_crow, new_col, crow.numel() - 1, 2**31) and new.shape == col.shape
    count = data.draw(st.sampled_from([-1, 0, len(places), len(places) + 1, 2**62]))
    inside = 0 <= count <= len(places) and all(0 <= r < 2 and 0 <= c < 3 for r, c, _ in places[:count])
    try:
        out = ops.coo_sddmm(row, column, torch.tensor(count), torch.ones(2, 4), torch.ones(3, 4))
    except (ValueError, TypeError):
        assert not inside
    else:
        assert inside and out.tolist() == [4.0] * count + [0.0] * (len(places) - count)
