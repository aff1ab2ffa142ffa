"""How a contender of a GPU race is timed, and what its time is held against."""
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

ROUNDS, WARM_UP = 30, 5


@dataclass
class Contender:
    """One row. `check` gets what `run` returned and raises AssertionError; `reset` puts changed operands back, untimed."""

    run: Callable[[], object]
    check: Callable[[object], None] | None = None
    reset: Callable[[], object] | None = None
    hbm: float = 0                          # bytes that must pass through device memory
    l2: float = 0                           # bytes that must come out of L2
    shared: float = 0                       # bytes that must come out of shared memory
    flops: float = 0                        # on tensor cores
    implementation: str = "torch"
    graph: bool = True                      # False: waits for the device, cannot be captured


@dataclass
class Yardsticks:
    """What the machine can do, measured in the same run (of shared memory: 128 bytes per SM and clock)."""

    copy_gb_per_s: float = math.inf
    l2_read_gb_per_s: float = math.inf
    bf16_tflops: float = math.inf
    shared_gb_per_s: float = math.inf

    def floor(self, one: Contender) -> tuple[float, str]:
        """Seconds that the contender's bytes and operations take at least, and which of them rules."""
        terms = {"memory": one.hbm / self.copy_gb_per_s * 1e-9, "L2": one.l2 / self.l2_read_gb_per_s * 1e-9,
                 "shared memory": one.shared / self.shared_gb_per_s * 1e-9, "tensor cores": one.flops / self.bf16_tflops * 1e-12}
        rules = max(terms, key=terms.get)
        return terms[rules], rules

    def known(self) -> dict[str, float]:
        return {name: round(value, 1) for name, value in vars(self).items() if value != math.inf}


class Host:
    """Times on the CPU, without caches flushed: enough to see that every case builds, agrees and is recorded."""

    name, rounds, warm_up = "cpu", 2, 0

    def prepare(self, one: Contender) -> tuple[Callable, str]:
        return one.run, "host"

    def seconds(self, run: Callable, reset: Callable | None = None, cold: bool = True) -> float:
        if reset:
            reset()
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    def wall(self, one: Contender) -> tuple[float, float]:
        took = self.seconds(one.run, one.reset)
        return took, took

    def yardsticks(self) -> Yardsticks:
        return Yardsticks()


class Gpu:
    """Times on the current CUDA device."""

    rounds, warm_up = ROUNDS, WARM_UP

    def __init__(self):
        self.name = torch.cuda.get_device_name()
        self.trash = torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda")
        self.side = torch.cuda.Stream()

    def prepare(self, one: Contender) -> tuple[Callable, str]:
        """The replay of a graph of the contender, or the contender itself where it cannot be captured."""
        if not one.graph:
            return one.run, "events"
        try:
            graph = torch.cuda.CUDAGraph()
            torch.cuda.synchronize()
            with torch.cuda.stream(self.side):
                for _ in range(2):
                    one.run()
                self.side.synchronize()
                graph.capture_begin()       # not torch.cuda.graph: that collects garbage each time
                try:
                    one.run()
                finally:
                    graph.capture_end()
            torch.cuda.synchronize()
            graph.replay()
            torch.cuda.synchronize()
            return graph.replay, "graph"
        except RuntimeError:
            torch.cuda.synchronize()        # raises where the device is lost
            return one.run, "events"

    def seconds(self, run: Callable, reset: Callable | None = None, cold: bool = True) -> float:
        if reset:
            reset()
        if cold:
            self.trash.zero_()
        torch.cuda._sleep(100_000)          # some 50 us in which the host gets ahead, so that its work is not in the events' difference
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) * 1e-3

    def wall(self, one: Contender) -> tuple[float, float]:
        """Of an eager call: until the device is done, and until the host is free again."""
        if one.reset:
            one.reset()
        torch.cuda.synchronize()
        start = time.perf_counter()
        one.run()
        free = time.perf_counter() - start
        torch.cuda.synchronize()
        return time.perf_counter() - start, free

    def yardsticks(self) -> Yardsticks:
        def best(run: Callable, cold: bool = True) -> float:
            times = [self.seconds(run, cold=cold) for _ in range(8)]
            return statistics.median(times[2:])

        def copy() -> float:
            source = torch.randn(256 * 2**20, device="cuda")
            target = torch.empty_like(source)
            return 2 * source.nbytes / best(lambda: target.copy_(source)) * 1e-9

        def product() -> float:
            a, b = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
            return 2 * 8192**3 / best(lambda: a @ b) * 1e-12

        sms = torch.cuda.get_device_properties(0).multi_processor_count
        return Yardsticks(copy(), self._l2(sms, best), product(), sms * 128 * 1.755)

    @staticmethod
    def _l2(sms: int, best: Callable) -> float:
        """Reads of 24 MB over and over; infinite (no share of it is given) without Triton."""
        try:
            from gpu_l2 import read_again
        except ImportError:
            return math.inf
        buffer, out, passes = torch.randn(6 * 2**20, device="cuda"), torch.empty(sms * 4, device="cuda"), 40
        return passes * buffer.nbytes / best(lambda: read_again(buffer, out, passes), cold=False) * 1e-9
