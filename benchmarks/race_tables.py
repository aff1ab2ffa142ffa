"""What a race leaves behind: tables of rows, and targets held against their medians. Shared by the races on the CPU and on a GPU."""
import math
import statistics
from dataclasses import asdict, dataclass, field


@dataclass
class Target:
    """A bound on the median times of one table; `left` and `right` name rows.

    "<=": left takes at most `bound` times the time of right.      ">=": left is at least `bound` times as fast as right.
    "us": left takes at most `bound` microseconds.                  "share": left reaches at least `bound` of its roofline.
    """

    left: str
    sense: str
    bound: float
    right: str = ""
    measured: float | None = None

    def judge(self, medians: dict[str, float], shares: dict[str, float] | None = None) -> None:
        """Medians in seconds, shares of the roofline, by row name; what is not there stays unmeasured."""
        if self.sense == "share":
            self.measured = (shares or {}).get(self.left)
        elif self.sense == "us" and self.left in medians:
            self.measured = medians[self.left] * 1e6
        elif self.left in medians and self.right in medians:
            ratio = medians[self.left] / medians[self.right]
            self.measured = ratio if self.sense == "<=" else 1 / ratio

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured <= self.bound if self.sense in ("<=", "us") else self.measured >= self.bound

    def words(self) -> str:
        if self.sense == "share":
            return f"{self.left} >= {self.bound:.0%} of the roofline"
        if self.sense == "us":
            return f"{self.left} <= {self.bound:g} us"
        return f"{self.left} {self.sense} {self.bound}x {'the time of' if self.sense == '<=' else 'as fast as'} {self.right}"

    def figure(self) -> str:
        return {"share": "{:.0%}", "us": "{:.0f} us"}.get(self.sense, "{:.2f}x").format(self.measured)

    def verdict(self, absent: str = "not run") -> str:
        if self.measured is None:
            return f"{absent}: {self.words()}"
        return f"{'met' if self.met else 'MISSED'}: {self.words()}: {self.figure()}"

    def __str__(self) -> str:
        return self.verdict()


@dataclass
class Overall:
    """A target over all tables of an op whose shape has `where` in it: the geometric mean of the ratios, or the worst of them."""

    op: str
    where: str
    target: Target
    how: str = "worst"                      # or "geomean"

    def table(self, tables: list["Table"]) -> "Table":
        one, ratios = self.target, []
        found = [table for table in tables if table.op == self.op and self.where in table.shape]
        for table in found:
            each = Target(one.left, one.sense, one.bound, one.right)
            each.judge(table.medians(), table.shares())
            ratios += [] if each.measured is None else [each.measured]
        if ratios and self.how == "geomean":
            measured = math.exp(statistics.fmean(map(math.log, ratios)))
        else:
            measured = (max if one.sense in ("<=", "us") else min)(ratios, default=None)
        words = "geometric mean" if self.how == "geomean" else "worst"
        judged = Target(one.left, one.sense, one.bound, one.right, measured)
        shape = f"all{' ' + self.where if self.where else ''}: {words} of {len(ratios)} out of {len(found)}"
        return Table(self.op, shape, targets=[judged], absent=found[0].absent if found else "not run")


@dataclass
class Table:
    op: str
    shape: str
    rows: list[dict] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    absent: str = "not run"                 # what the verdict on an unmeasured target says first

    def medians(self) -> dict[str, float]:
        return {row["name"]: row["median_ms"] * 1e-3 for row in self.rows if "median_ms" in row}

    def shares(self) -> dict[str, float]:
        return {row["name"]: row["share"] for row in self.rows if row.get("share")}

    def judge(self) -> None:
        for target in self.targets:
            target.judge(self.medians(), self.shares())

    def verdicts(self) -> list[str]:
        return [target.verdict(self.absent) for target in self.targets]

    def record(self) -> dict:
        """As JSON keeps it."""
        return asdict(self) | {"verdicts": self.verdicts()}
