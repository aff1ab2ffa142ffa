"""What an algorithm tells a training loop that follows it, with defaults for those that train in one stretch."""
from collections.abc import Callable


class LoopHooks:
    """Base of `Sparsifier`. A loop also asks for three attributes that not every algorithm has:

    - `loss(model, x, y, criterion)`: the loss of a step in place of the criterion's.
    - `use_directory(path)`: called before the first step and before a state is loaded; where the algorithm may keep files of its own.
    - `finalize(evaluate, batches, tick)`: called after the last step, to choose among the nets. `evaluate(name)` is the accuracy of a sub-net
      on images held out of the training set; `batches()` iterates over training inputs without augmentation, the same ones every time;
      `tick(done, total, text)` tells progress. Both may raise when the run is to stop: `finalize` is called again when it goes on, from the
      state that was saved then, and must come to the same end.
    """
    #: Share of the training images that `finalize` wants to be held out.
    holdout = 0.0
    #: A loop may set it: called after the update of the last step of every span, before the algorithm changes masks or weights for the next.
    span_ended: Callable[[], None] | None = None

    def span(self, step: int) -> tuple[int, int]:
        """(first step, steps) of the stretch of the run over which the learning rate's schedule goes once."""
        return 0, self.config.total_steps

    def stage(self, step: int) -> str | None:
        """What progress shows of where the run is, such as "stage 2/5"."""
        return None

    @property
    def extra_forward(self) -> str | None:
        """The mask of a forward pass without gradient that the step at hand makes besides its own (a teacher's), for the count of FLOPs."""
        return None
