"""The GPU races over the emulated CUDA bindings: they take the races' calls as they are, and pass the checks that come before timing."""
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import gpu_race  # noqa: E402
from gpu_race import Contender, Host, Lab, Race  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")


def kinds() -> list:
    """The first case of each builder and dtype: their sizes are scaled down here."""
    seen = {}
    for family in gpu_race.FAMILIES:
        for case in gpu_race.load(family)[0]:
            seen.setdefault((case.build.__qualname__, case.op, "bf16" in case.shape), pytest.param(case, id=f"{case.op}, {case.shape}"))
    return list(seen.values())


@pytest.mark.parametrize("lane", ["emulated"], indirect=True)               # on a GPU the race does that itself
@pytest.mark.parametrize("case", kinds())
def test_bindings_take_the_calls_of_the_race(lane, case):
    class Emulated(Lab):
        def ours(self, label, op, make, *, triton=True, **facts):
            return {label: Contender(**make(lane.op(op)), **facts, implementation="emulated")} if triton else {}      # no gradients there

    rows = Race(Host(), Emulated("cpu", small=True)).case(case).rows
    assert rows and not [row for row in rows if "void" in row and row["name"].startswith("sparsekern")], rows
