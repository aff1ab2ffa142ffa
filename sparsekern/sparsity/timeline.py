"""Which weights take part when: a pure function from the step number to a phase."""
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

ALL = "all"                             # the mask name that means every weight
FOREVER = 1 << 62


def rest(name: str) -> str:
    """The mask name that means all that the mask `name` hides."""
    return f"~{name}"


@dataclass(frozen=True)
class View:
    """Two mask names: the weights that take part in the forward pass, and those that may change.

    `frozen`: nothing else changes, neither parameters without a mask nor the running statistics of norms (which normalise by the batch).
    """
    forward: str
    update: str
    frozen: bool = False


@dataclass(frozen=True)
class Phase:
    """Steps in a row that see the weights through the same view."""
    name: str
    steps: int
    view: View


@dataclass(frozen=True)
class Moment:
    """Where a step lies: phase number `position` of cycle `cycle`, `offset` steps after the phase began. The lead is cycle -1."""
    phase: Phase
    cycle: int
    position: int
    offset: int

    @property
    def last(self) -> bool:
        """Whether this is the last step of its phase."""
        return self.offset == self.phase.steps - 1


@dataclass(frozen=True)
class Timeline:
    """`lead` once, `cycle` repeated `cycles` times, then `then` for good."""
    cycle: tuple[Phase, ...]
    cycles: int = FOREVER
    then: Phase | None = None
    lead: tuple[Phase, ...] = ()

    def __post_init__(self):
        if self.length < 1 or (self.then is None and self.cycles < FOREVER):
            raise ValueError("Timeline: expected a cycle of at least one step, and a last phase after a limited number of cycles")

    @property
    def length(self) -> int:
        return sum(phase.steps for phase in self.cycle)

    def at(self, step: int) -> Moment:
        for position, phase in enumerate(self.lead):
            if step < phase.steps:
                return Moment(phase, -1, position, step)
            step -= phase.steps
        cycle, offset = divmod(step, self.length)
        if cycle >= self.cycles:
            return Moment(self.then, self.cycles, len(self.cycle), step - self.cycles * self.length)
        for position, phase in enumerate(self.cycle):
            if offset < phase.steps:
                return Moment(phase, cycle, position, offset)
            offset -= phase.steps
        raise AssertionError("the offset lies inside the cycle")


@dataclass(frozen=True)
class Stages:
    """Stages one after the other; within a stage its phases take turns, one step each, until the stage is over.

    A phase's `steps` are those of its whole stage. Of a moment `cycle` is the number of the stage, `position` that of the phase in its turns,
    `offset` the steps since the stage began, and `last` its last step. The last stage's turns go on for good.
    """
    stages: tuple[tuple[Phase, ...], ...]

    def __post_init__(self):
        for number, turns in enumerate(self.stages):
            if not turns or len({phase.steps for phase in turns}) > 1 or turns[0].steps < 1:
                raise ValueError(f"Stages: stage {number}: expected phases of the same number of steps, at least 1, got {turns}")
        if not self.stages:
            raise ValueError("Stages: expected at least one stage, got none")

    @property
    def length(self) -> int:
        """Steps of the longest turns."""
        return max(map(len, self.stages))

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first step of every stage, and the end of the last one."""
        return tuple(accumulate((turns[0].steps for turns in self.stages), initial=0))

    def at(self, step: int) -> Moment:
        stage = min(bisect_right(self.starts, step), len(self.stages)) - 1
        turns, offset = self.stages[stage], step - self.starts[stage]
        return Moment(turns[offset % len(turns)], stage, offset % len(turns), offset)
