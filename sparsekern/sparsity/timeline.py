"""Which weights take part when: a pure function from the step number to a phase."""
from dataclasses import dataclass

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
