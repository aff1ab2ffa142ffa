"""Times of nets beside a reference, so that the machine's mood does not decide: one process's medians of the same net differ by half."""
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

WARM_UP = 2                                     # inferences of every net before the first round
Timer = Callable[[nn.Module, Tensor], float]


@dataclass(frozen=True)
class Timing:
    """What `compare` found for one net.

    Attributes:
        ms: milliseconds of an inference, the median of all rounds; `reference_ms`: of the reference around it.
        ratio: the net's time over the reference's of the same round (below 1 is faster), the median of all rounds; `ratio_10` and `ratio_90`:
            the quantiles that a tenth of the rounds lie below and above. `ms / reference_ms` need not be `ratio`.
        speedup: the reference's time over the net's, the same three figures turned over: 1 / ratio, 1 / ratio_90, 1 / ratio_10.
    """
    ms: float
    ratio: float
    ratio_10: float
    ratio_90: float
    reference_ms: float

    @property
    def speedup(self) -> float:
        return 1 / self.ratio

    @property
    def speedup_10(self) -> float:
        return 1 / self.ratio_90

    @property
    def speedup_90(self) -> float:
        return 1 / self.ratio_10


def compare(nets: Mapping[str, nn.Module], reference: nn.Module, images: Tensor, rounds: int = 40, *,
            timer: Timer | None = None) -> dict[str, Timing]:
    """Times of several nets, each between two inferences of a reference in every round, all in eval mode (put back afterwards).

    What slows the machine for longer than three inferences slows both and leaves the ratio alone; what hits one of them alone is an outlier among
    the rounds. An inference that is not timed goes before each that is, so that a net finds the caches as it leaves them itself.

    Args:
        images: a batch on the nets' device, in the dtype and memory order they will meet.
        rounds: a round is 4 inferences for every net: itself and the reference, twice.
        timer: (net, images) -> milliseconds of one inference; default `time_inference`.
    Raises:
        ValueError: fewer than one round.
    """
    if rounds < 1:
        raise ValueError(f"compare: rounds: expected at least 1, got {rounds}")
    timer = timer or time_inference
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in nets}

    def warm(net: nn.Module) -> float:
        timer(net, images)
        return timer(net, images)
    modes = [(module, module.training) for net in (reference, *nets.values()) for module in net.modules()]
    try:
        for net in (reference, *nets.values()):
            net.eval()
            for _ in range(WARM_UP):
                timer(net, images)
        before = warm(reference)
        for _ in range(rounds):
            for name, net in nets.items():
                ms, after = warm(net), warm(reference)
                found[name].append((ms, (before + after) / 2))
                before = after
    finally:
        for module, mode in modes:
            module.training = mode
    return {name: _timing(pairs) for name, pairs in found.items()}


def time_inference(net: nn.Module, images: Tensor) -> float:
    """Milliseconds of one forward pass without gradient; on a GPU between two events, from an idle device."""
    with torch.no_grad():
        if not images.is_cuda:
            start = time.perf_counter()
            net(images)
            return 1000 * (time.perf_counter() - start)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(images.device)
        start.record(torch.cuda.current_stream(images.device))
        net(images)
        end.record(torch.cuda.current_stream(images.device))
        torch.cuda.synchronize(images.device)
        return start.elapsed_time(end)


def usable_device(op: str, device: torch.device | str) -> torch.device:
    """The device, where something can be run and measured on it here; else ValueError, which names `op`."""
    try:
        where = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f'{op}: device: expected "cpu" or "cuda", got {device!r}') from error
    if where.type not in ("cpu", "cuda"):
        raise ValueError(f'{op}: device: expected "cpu" or "cuda", got {device!r}: there are no kernels for it')
    if where.type == "cuda" and not torch.cuda.is_available():
        built = "finds no GPU or no driver" if torch.version.cuda else "is built without CUDA"
        raise ValueError(f'{op}: device: {device!r} was asked for, but this torch ({torch.__version__}) {built}; install what is missing, '
                         f'or take device="cpu"')
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"{op}: device: {device!r} was asked for, there are {torch.cuda.device_count()} GPUs")
    return where


def _timing(pairs: list[tuple[float, float]]) -> Timing:
    ms, reference_ms = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    low, middle, high = (ms / reference_ms).quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).tolist()
    return Timing(float(ms.quantile(0.5)), middle, low, high, float(reference_ms.quantile(0.5)))
