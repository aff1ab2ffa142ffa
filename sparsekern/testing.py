"""What tests, benchmarks and the doctor share: the tolerance rule, input makers, shapes of real networks."""
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["assert_close", "awkward_shapes", "double", "each_implementation", "random_csr", "random_masks", "resnet50_shapes", "small_convnet",
           "threads", "tolerance", "toy_batch", "watch_allocations"]

# Odd, prime, empty, scalar, one element, not a multiple of 16, 32 or a piece of 32K.
awkward_shapes = [(0,), (1,), (), (7,), (31,), (32,), (33,), (5, 0, 3), (17, 13), (3, 5, 7, 2), (257,), (32771,), (70001,)]


def tolerance(dtype: torch.dtype, reduction: int = 1, c: float = 4.0) -> float:
    """The one rule: RMS(error) / RMS(reference) <= c * eps(dtype) * sqrt(reduction length)."""
    return c * torch.finfo(dtype).eps * math.sqrt(max(reduction, 1))


def assert_close(actual: Tensor, oracle: Tensor, *, dtype: torch.dtype | None = None, reduction: int = 1, c: float = 4.0) -> None:
    """Assert that `actual` agrees with `oracle` (run in float64) under the tolerance rule; non-finite values must be equal."""
    assert actual.shape == oracle.shape, f"shape {tuple(actual.shape)}, expected {tuple(oracle.shape)}"
    got, want = actual.detach().double().cpu(), oracle.detach().double().cpu()
    finite = torch.isfinite(want)
    assert torch.equal(torch.isnan(got), torch.isnan(want)), "NaN in different places"
    assert torch.equal(got[~finite & ~torch.isnan(want)], want[~finite & ~torch.isnan(want)]), "infinities differ"
    if not finite.any():
        return
    error = (got - want)[finite].square().mean().sqrt()
    scale = want[finite].square().mean().sqrt()
    bound = tolerance(dtype or actual.dtype, reduction, c)
    assert error <= bound * max(scale.item(), torch.finfo(dtype or actual.dtype).tiny), f"relative RMS error {error / scale:.3e} > {bound:.3e}"


def double(value):
    """The same nested lists with floating tensors as fresh float64 copies: inputs of an oracle."""
    if isinstance(value, Tensor):
        return value.detach().double().clone() if value.is_floating_point() else value.clone()
    return type(value)(double(v) for v in value) if isinstance(value, (list, tuple)) else value


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with `count` CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def each_implementation(name: str, device: torch.device | str = "cpu") -> list[str]:
    """Names of the implementations of an op that can run on `device` here (Triton on the CPU runs in its interpreter)."""


    from sparsekern.ops import implementations
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    on_gpu = torch.device(device).type == "cuda"
    able = {"reference": True, "cpu": not on_gpu, "cuda": on_gpu, "triton": on_gpu or interpreted}
    return [key for key in implementations(name) if able[key]]


def random_masks(tensors: list[Tensor], density: float, generator: torch.Generator | None = None) -> list[Tensor]:
    """Bool masks of the tensors' shapes and layouts, about `density` of them on."""
    return [torch.empty_like(t, dtype=torch.bool).copy_(torch.rand(t.shape, generator=generator).to(t.device) < density) for t in tensors]


def random_csr(rows: int, cols: int, sparsity: float, *, seed: int = 0, dtype: torch.dtype = torch.float32,
               index64: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """(crow, col, val) of a [rows, cols] matrix with exactly round((1 - sparsity) * rows * cols) entries at random places."""
    generator = torch.Generator().manual_seed(seed)
    nnz = int((1 - sparsity) * rows * cols + 0.5)
    flat = torch.randperm(rows * cols, generator=generator)[:nnz].sort().values
    counts = torch.bincount(flat // max(cols, 1), minlength=rows)
    crow = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(torch.int64 if index64 else torch.int32)
    return crow, (flat % max(cols, 1)).to(torch.int32), torch.randn(nnz, generator=generator, dtype=torch.float64).to(dtype)


def resnet50_shapes() -> list[tuple[int, ...]]:
    """The 161 parameter shapes of ResNet-50 (25,557,032 elements), in order."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    inside = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            for shape in ((width, inside, 1, 1), (width, width, 3, 3), (width * 4, width, 1, 1)):
                shapes += [shape, (shape[0],), (shape[0],)]
            if block == 0:
                shapes += [(width * 4, inside, 1, 1), (width * 4,), (width * 4,)]
            inside = width * 4
    return shapes + [(1000, 2048), (1000,)]


def small_convnet(classes: int = 4) -> torch.nn.Sequential:
    """Two convolutions with batch norm, a third inside, and a linear layer: every kind of layer the engine treats differently."""
    nn = torch.nn
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, bias=False),
                         nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
                         nn.Flatten(), nn.Linear(64, classes))


def toy_batch(step: int, size: int = 32, classes: int = 4) -> tuple[Tensor, Tensor]:
    """[size, 3, 8, 8] noisy pictures of `classes` fixed patterns and their labels; the same for the same step."""
    patterns = torch.randn(classes, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(step + 1)
    labels = torch.randint(classes, (size,), generator=generator)
    return patterns[labels] + torch.randn(size, 3, 8, 8, generator=generator), labels


class watch_allocations(TorchDispatchMode):
    """Within it nothing of a dense weight's size may come into being, in forward, backward, update or event.

    An op that returns a tensor with a storage of its own of `limit` elements or more raises AssertionError on the spot, naming itself;
    views and in-place results have no storage of their own and do not count. What kernels allocate inside is seen by the profiler: a
    piece of `limit` bytes or more (so even a bool mask of the weight's size) raises at the end. `limit` is the size of the dense weight;
    activations and the panels that kernels make of them must be smaller than that. Memory that no torch allocator gave out is not seen;
    benchmarks/bench_memory.py weighs it.
    """

    def __init__(self, limit: int):
        super().__init__()
        self.limit = limit
        self.largest = 0                    # bytes of the largest piece allocated
        self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)

    def __enter__(self):
        self._profile.__enter__()
        return super().__enter__()

    def __exit__(self, kind, error, trace):
        super().__exit__(kind, error, trace)
        self._profile.__exit__(kind, error, trace)
        self.largest = max([event.nbytes() for event in self._profile.profiler.kineto_results.events() if event.name() == "[memory]"] + [0])
        if kind is None:
            assert self.largest < self.limit, f"a piece of {self.largest} bytes was allocated, the limit is {self.limit}"

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = {tensor.untyped_storage().data_ptr() for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        result = function(*args, **kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in given:
                elements = tensor.untyped_storage().nbytes() // tensor.element_size()
                assert elements < self.limit, f"{function} made a tensor of shape {list(tensor.shape)}: the limit is {self.limit} elements"
        return result
