"""The examples run, small; the huge layer also at its real size."""
import importlib.util
from pathlib import Path

import pytest
from ast_gc_runs import one_thread  # noqa: F401

from sparsekern._native import native

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_small_huge_layer(capsys):
    found = load("huge_layer").main(["--size", "2000", "--sparsity", "0.995", "--batch", "4", "--steps", "4"])
    assert found["nnz"] == 20_000 and found["events"] == 2 and min(found["moved"][:1]) > 0 and found["losses"][-1] < 3
    said = capsys.readouterr().out
    assert "99.5000% sparse" in said and "peak memory" in said and said.count("connections moved") == 2


@pytest.mark.slow
def test_the_huge_layer_trains_in_the_memory_of_its_nonzeros():
    if not native.available:
        pytest.skip("minutes without the compiled kernels")
    found = load("huge_layer").main(["--steps", "2", "--batch", "8"])
    assert found["nnz"] == 4_000_000 and found["events"] == 2 and found["moved"][0] == 800_000
    assert found["rise_mib"] < 4096                                 # of 149 GiB
