"""The GPU races without a GPU: every kind of case builds, agrees and is recorded on the CPU, scaled down; targets and floors add up."""
import contextlib
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu_race  # noqa: E402
import gpu_timer  # noqa: E402
from gpu_race import Case, Contender, Host, Lab, Race, Yardsticks, agrees, equal  # noqa: E402
from race_tables import Overall, Table, Target  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
LOADED = {family: gpu_race.load(family) for family in (*gpu_race.FAMILIES, gpu_race.TRAINING)}


def kinds() -> list:
    """One case of each kind: the same builder in the same dtype differs by sizes alone, which are scaled down here."""
    seen = {}
    for family, (cases, _) in LOADED.items():
        for case in cases:
            cells = [cell.cell_contents for cell in case.build.__closure__ or ()]
            kind = (family, case.op, case.build.__qualname__, *[str(c) for c in cells if isinstance(c, (bool, str, torch.dtype))])
            seen.setdefault(kind, pytest.param(case, id=f"{case.op}, {case.shape}"))
    return list(seen.values())


@pytest.mark.parametrize("case", kinds())
def test_every_kind_of_case_runs(case):
    race = Race(Host(), Lab("cpu", small=True))
    table = race.case(case)
    missing = [note for note in table.notes if "there is no" in note]
    if missing:
        pytest.skip(missing[0])
    assert table.rows
    for row in table.rows:
        # The CPU lacks bf16 in some of torch's sparse products.
        assert "void" not in row or "does not run" in row["void"] and row["name"].startswith("torch"), row
        assert "void" in row or row["median_ms"] > 0 and row["implementation"]
    names = {row["name"] for row in table.rows} | {"sparsekern staged"}         # one algorithm of the CUDA kernels
    for target in case.targets:
        assert {target.left, target.right} - {""} <= names, f"{target}: no such row among {sorted(names)}"
    json.dumps(table.record())


def test_every_target_names_rows_and_ops_that_exist():
    for cases, overall in LOADED.values():
        assert len({(case.op, case.shape) for case in cases}) == len(cases), "two tables of one name"
        for one in overall:
            assert any(case.op == one.op and one.where in case.shape for case in cases), one


def test_targets_of_the_plan_are_there():
    """One line per bound of the plan for this GPU; a family that loses one fails here."""
    count = {family: sum(len(case.targets) for case in cases) + len(overall) for family, (cases, overall) in LOADED.items()}
    assert all(count.values()) and sum(count.values()) > 80, count


def test_targets():
    medians, shares = {"ours": 1e-6, "peer": 3e-6}, {"ours": 0.9}
    for target, met, words in ((Target("ours", ">=", 2.0, "peer"), True, "met: ours >= 2.0x as fast as peer: 3.00x"),
                               (Target("peer", "<=", 2.0, "ours"), False, "MISSED: peer <= 2.0x the time of ours: 3.00x"),
                               (Target("peer", "us", 2), False, "MISSED: peer <= 2 us: 3 us"),
                               (Target("ours", "share", 0.85), True, "met: ours >= 85% of the roofline: 90%"),
                               (Target("other", ">=", 2.0, "peer"), None, "not run: other >= 2.0x as fast as peer"),
                               (Target("peer", "share", 0.5), None, "not run: peer >= 50% of the roofline")):
        target.judge(medians, shares)
        assert (target.met, str(target)) == (met, words)


def test_targets_over_several_tables():
    def table(shape, ours, peer):
        return Table("op", shape, rows=[{"name": "ours", "median_ms": ours}, {"name": "peer", "median_ms": peer}])
    tables = [table("a fp32", 1, 2), table("b fp32", 1, 8), table("c bf16", 1, 100), Table("op", "d fp32", rows=[{"name": "ours", "void": "no"}])]
    geometric = Overall("op", "fp32", Target("ours", ">=", 3.0, "peer"), "geomean").table(tables)
    assert geometric.verdicts() == ["met: ours >= 3.0x as fast as peer: 4.00x"] and geometric.shape == "all fp32: geometric mean of 2 out of 3"
    assert Overall("op", "fp32", Target("ours", ">=", 3.0, "peer")).table(tables).verdicts() == ["MISSED: ours >= 3.0x as fast as peer: 2.00x"]
    assert Overall("other", "", Target("ours", ">=", 3.0, "peer")).table(tables).verdicts() == ["not run: ours >= 3.0x as fast as peer"]


def test_the_choice_of_an_algorithm_is_judged():
    import gpu_csr
    table = Table("csr_spmm", "", rows=[{"name": name, "median_ms": ms} for name, ms in (
        ("sparsekern", 3.0), ("sparsekern scalar", 4.0), ("sparsekern staged", 2.0), ("sparsekern transposed", 1.0), ("dense tf32", 0.5))])
    assert gpu_csr.choice(table) == ["auto takes 1.50x the time of the best algorithm, staged"] and gpu_csr.choice(Table("csr_spmm", "")) == []


def test_triton_is_named_where_it_is_faster():
    rows = [{"name": name, "median_ms": ms} for name, ms in (("a", 2.0), ("a, triton", 1.0), ("b", 1.0), ("b, triton", 2.0), ("c", 1.0))]
    assert gpu_race.faster_in_triton(Table("op", "", rows=rows)) == ["Triton takes 0.50x the time of CUDA: a"]


def test_floor_is_the_longest_of_its_terms():
    yard = Yardsticks(copy_gb_per_s=1000, l2_read_gb_per_s=5000, bf16_tflops=500)
    assert yard.floor(Contender(print, hbm=1e9, l2=1e9)) == (pytest.approx(1e-3), "memory")
    assert yard.floor(Contender(print, hbm=1e9, flops=1e12)) == (pytest.approx(2e-3), "tensor cores")
    assert yard.floor(Contender(print, hbm=1e9, l2=6e9)) == (pytest.approx(1.2e-3), "L2")
    assert yard.floor(Contender(print))[0] == 0 and yard.floor(Contender(print, shared=5))[0] == 0
    assert yard.known() == {"copy_gb_per_s": 1000, "l2_read_gb_per_s": 5000, "bf16_tflops": 500}


def build(**contenders):
    return Case("op", "shape", lambda lab: {name: Contender(*parts) for name, parts in contenders.items()},
                targets=(Target("sparsekern", ">=", 2.0, "torch"),))


def test_a_wrong_result_voids_its_row_and_its_target():
    one = torch.ones(3)
    race = Race(Host(), Lab("cpu", small=True))
    table = race.case(build(sparsekern=(lambda: 2 * one, lambda got: equal(got, one)), torch=(lambda: one, lambda got: equal(got, one)),
                            lost=(lambda: torch.ones(2) @ one,)))
    assert [row.get("void", "ran")[:12] for row in table.rows] == ["wrong result", "ran", "does not run"[:12]]
    assert table.verdicts() == ["not run on a GPU yet: sparsekern >= 2.0x as fast as torch"]


def test_operands_are_put_back_before_every_call():
    x, seen = torch.zeros(1), []

    def run():
        seen.append(float(x))
        x.add_(1)
    Race(Host(), Lab("cpu", small=True)).case(Case("op", "", lambda lab: {"sparsekern": Contender(run, None, x.zero_)}))
    assert len(seen) > 4 and set(seen) == {0.0}


def test_a_case_that_cannot_be_built_says_so():
    def fails(lab):
        raise ValueError("no such shape\nmore")
    assert Race(Host(), Lab("cpu", small=True)).case(Case("op", "", fails)).notes == ["could not be built: no such shape"]


def test_late_cases_are_left_out_and_missing_ops_named():
    late = Race(Host(), Lab("cpu", small=True), deadline=1e-9)
    assert late.case(build(sparsekern=(print,))).notes == ["left out (time)"] and not late.tables[0].rows
    missing = Race(Host(), Lab("cpu", small=True)).case(Case("op", "", lambda lab: {}, needs=("no_such_op",)))
    assert missing.notes == ["there is no no_such_op yet"]


class Pretended:
    """Just enough of torch.cuda to time a contender: graphs that replay what they recorded, or refuse to record it."""
    class Event:
        def __init__(self, enable_timing):
            assert enable_timing
        def record(self):
            self.at = time.perf_counter()
        def synchronize(self):
            pass
        def elapsed_time(self, stop):
            return (stop.at - self.at) * 1e3

    class CUDAGraph:
        def capture_begin(self):
            Pretended.capturing = True
        def capture_end(self):
            Pretended.capturing = False
        def replay(self):
            Pretended.replays += 1

    class Stream:
        def synchronize(self):
            pass

    stream = staticmethod(contextlib.nullcontext)
    synchronize = staticmethod(lambda: None)
    _sleep = staticmethod(lambda cycles: None)
    get_device_name = staticmethod(lambda: "pretended")
    capturing, replays = False, 0


def test_gpu_timer_replays_what_can_be_captured(monkeypatch):
    for name in ("Event", "CUDAGraph", "Stream", "stream", "synchronize", "_sleep", "get_device_name"):
        monkeypatch.setattr(torch.cuda, name, getattr(Pretended, name), raising=False)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, device=None, **more: empty(8, **more))
    timer = gpu_race.Gpu()
    calls = []

    def waits():
        if Pretended.capturing:
            raise RuntimeError("operation not permitted when stream is capturing")
        calls.append("waits")

    race = Race(timer, Lab("cpu", small=True), yard=Yardsticks(copy_gb_per_s=1.0))
    table = race.case(Case("op", "", lambda lab: {
        "sparsekern": Contender(lambda: calls.append("ours"), hbm=1e3, reset=lambda: calls.append("reset")),
        "waits": Contender(waits), "never captured": Contender(lambda: calls.append("never"), graph=False)}))
    assert [row["timed"] for row in table.rows] == ["graph", "events", "events"]
    assert all(row["rounds"] == gpu_timer.ROUNDS for row in table.rows)
    # The check, two to warm up, the capture, ten eager ones; every timed one was a replay.
    assert calls.count("ours") == 14 and Pretended.replays == 1 + gpu_timer.ROUNDS + gpu_timer.WARM_UP + 10
    assert table.rows[0]["bound"] == "memory" and table.rows[0]["floor_ms"] == pytest.approx(1e-3) and table.rows[1]["share"] is None


def test_checks():
    want = torch.randn(1000, dtype=torch.float64)
    agrees(want.float(), want)
    agrees(want.bfloat16(), want, peer=True)
    agrees(torch.zeros(4), torch.zeros(4, dtype=torch.float64))
    for bad in (want.float() * (1 + 1e-5), want.float()[1:], torch.where(want > 1, torch.nan, want).float()):
        with pytest.raises(AssertionError):
            agrees(bad, want)
    with pytest.raises(AssertionError, match="1 of 3 elements differ"):
        equal(torch.tensor([1, 2, 3]), torch.tensor([1, 2, 4]))


def test_plan_lists_every_target_without_a_gpu(tmp_path):
    command = [sys.executable, ROOT / "benchmarks/gpu_race.py", "--plan", "--report", tmp_path / "plan.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    plan = json.loads((tmp_path / "plan.json").read_text())
    verdicts = [line for table in plan["tables"] for line in table["verdicts"]]
    assert plan["gpu"] is None and len(verdicts) > 80 and all(line.startswith("not run on a GPU yet: ") for line in verdicts)


def test_l2_reads_every_block(monkeypatch):
    if not torch.cuda.is_available():
        pytest.importorskip("triton")
        import gpu_l2
        source, out = torch.ones(6 * 64), torch.zeros(4)
        gpu_l2.read_again(source, out, 3, block=64)
        assert out.sum() == 3 * source.numel() and math.isclose(float(out[0]), 3 * 2 * 64)
