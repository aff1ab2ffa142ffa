"""Imports point downwards only: cli -> training, deploy -> algorithms -> sparsity -> nn, support; nn -> ops -> triton_kernels, _native."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BELOW = {                                                   # room -> what it may import of this project
    "triton_kernels": set(),
    "_native": set(), "_version": set(), "_machine": set(),
    "ops": {"_native", "triton_kernels"},
    "nn": {"ops", "_native"},
    "sparsity": {"support", "nn", "ops", "_machine"},
    "algorithms": {"sparsity", "nn", "ops"},
    "testing": {"ops", "_native", "triton_kernels"},
    "doctor": {"testing", "nn", "ops", "_native", "_machine", "__version__"},     # knows the build, the ops and the layers, no algorithm
    "support": {"_native", "_machine", "_version"},
    "training": {"support", "algorithms", "sparsity", "nn", "ops", "_native", "_machine", "__version__"},
    "deploy": {"support", "algorithms", "sparsity", "nn", "ops", "_native", "_machine", "__version__"},
}
FOREIGN = {"triton_kernels": {"torch", "triton"}}           # and of the rest of the world, where that is limited


def rooms() -> dict[str, list[Path]]:
    """Every room that exists with its Python files. The command line and the package itself may see all rooms."""
    places = {room: ROOT / "sparsekern" / room for room in BELOW} | {"triton_kernels": ROOT / "triton_kernels"}
    files = {room: sorted(place.rglob("*.py")) + [p for p in [place.with_suffix(".py")] if p.exists()] for room, place in places.items()}
    return {room: found for room, found in files.items() if found}


def imported(path: Path) -> list[tuple[int, str]]:
    """(line, dotted name) of every import, wherever it stands; relative ones spelled out."""
    package = ("sparsekern",) + path.relative_to(ROOT / "sparsekern" if (ROOT / "sparsekern") in path.parents else ROOT).parts[:-1]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[:len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
    return found


def forbidden(room: str, name: str) -> bool:
    """Whether a file of `room` may not import `name`."""
    parts = name.split(".")
    if parts[0] != "sparsekern":
        return room in FOREIGN and parts[0] not in FOREIGN[room] and parts[0] not in {"math", "os", "functools", "dataclasses"}
    if len(parts) < 2:                                      # the package's own front page stands above the algorithms
        return room not in ("training", "deploy")
    return parts[1] != room and parts[1] not in BELOW[room]


@pytest.mark.parametrize("room, files", rooms().items(), ids=list(rooms()))
def test_no_arrow_points_upwards(room, files):
    arrows = [f"{path.relative_to(ROOT)}:{line}: {room} -> {name}" for path in files for line, name in imported(path)
              if forbidden(room, name)]
    assert not arrows, "\n".join(arrows)


def test_no_room_imports_tests_or_benchmarks():
    arrows = [f"{path}:{line}: {name}" for files in rooms().values() for path in files for line, name in imported(path)
              if name.split(".")[0] in ("tests", "benchmarks")]
    assert not arrows, "\n".join(arrows)


def test_an_upward_arrow_is_seen():
    assert forbidden("ops", "sparsekern.sparsity.masks") and forbidden("sparsity", "sparsekern.algorithms.ast_gc.AST_GC")
    assert forbidden("triton_kernels", "sparsekern.ops") and forbidden("triton_kernels", "numpy")
    assert not forbidden("algorithms", "sparsekern.ops") and not forbidden("sparsity", "sparsekern.nn.switchable_norm")


def test_device_code_knows_no_torch():
    """.cu and .cuh compile without torch headers; csrc names no Python."""
    for path in [*(ROOT / "csrc").rglob("*.cu"), *(ROOT / "csrc").rglob("*.cuh")]:
        wrong = [line for line in path.read_text().splitlines() if line.startswith("#include") and any(
            word in line for word in ("torch/", "ATen/", "c10/", "Python.h"))]
        assert not wrong, f"{path.relative_to(ROOT)}: {wrong}"
    for path in [p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh")]:
        banned = [line for line in path.read_text().splitlines() if "<torch/extension.h>" in line or "<ATen/ATen.h>" in line]
        assert not banned, f"{path.relative_to(ROOT)}: {banned}"
