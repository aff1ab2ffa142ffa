"""The GPU races as part of `pytest --benchmark`: every case of gpu_<family>.py, then the targets over several cases."""
import gpu_race as races
import pytest

LOADED = {family: races.load(family) for family in (*races.FAMILIES, races.TRAINING)}
CASES = [pytest.param(case, id=f"{case.op}, {case.shape}") for cases, _ in LOADED.values() for case in cases]


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")                  # peers may warn
@pytest.mark.parametrize("case", CASES)
def bench_on_gpu(gpu_race, case):
    table = gpu_race.case(case)
    wrong = {row["name"]: row["void"] for row in table.rows if "void" in row and row["name"].startswith("sparsekern")}
    assert not wrong, wrong
    assert not [note for note in table.notes if note.startswith(races.FAILED)], table.notes


@pytest.mark.gpu
def bench_targets_over_all(gpu_race):
    for _, overall in LOADED.values():
        gpu_race.tables += [one.table(gpu_race.tables) for one in overall]
