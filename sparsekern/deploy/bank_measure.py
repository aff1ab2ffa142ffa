"""What a deployed net costs on this machine, beside the dense net: milliseconds, bytes held, peak of one inference, size on disk, FLOPs."""
import os
import statistics
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparsekern.deploy.timing import Timer
from sparsekern.support.flops import layer_flops, sparse_flops

PLAIN_FORMS = {"dense", "slim"}                             # forms whose layers are torch's own
_SPAN_MS, _REPEATS = 5.0, 25                                # one timing lasts about so long, and takes at most so many inferences


def pair(net: nn.Module, dense: nn.Module, images: Tensor, repeats: int, number: int, timer: Timer) -> list[float]:
    """[ms of the net, ms of the dense one], each the median of `repeats` inferences, one right after the other, so that both meet the machine
    in the same state; who goes first changes from round to round. Each runs once before it is timed: another net's weights lie in the caches."""
    found = [0.0, 0.0]
    for place in ((0, 1) if number % 2 == 0 else (1, 0)):
        one = (net, dense)[place]
        timer(one, images)
        found[place] = statistics.median(timer(one, images) for _ in range(repeats))
    return found


def repeats_for(dense: nn.Module, images: Tensor, timer: Timer) -> int:
    """How many inferences make one timing: those of a quick net are many, so that one interruption does not decide."""
    timer(dense, images)
    return max(1, min(_REPEATS, round(_SPAN_MS / max(timer(dense, images), 1e-6))))


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """10 %, median, 90 %."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return tenths[0], statistics.median(values), tenths[-1]


def timings(times: Sequence[Sequence[float]]) -> dict:
    """Figures of a row from its rounds [[net ms, dense ms], ...]. `speedup` is the median of the rounds' own ratios, so that what slows the
    whole machine for a while cancels; `faster` is "yes" or "no" where at least nine rounds of ten agree, else "unclear"."""
    low, middle, high = spread([net for net, _ in times])
    slow, ratio, fast = spread([dense / net for net, dense in times])
    return {"latency_ms": middle, "latency_low_ms": low, "latency_high_ms": high, "dense_ms": statistics.median(dense for _, dense in times),
            "speedup": ratio, "speedup_low": slow, "speedup_high": fast, "faster": "yes" if slow > 1 else "no" if fast < 1 else "unclear"}


def held_bytes(net: nn.Module) -> int:
    """Of parameters and buffers, what a sparse layer derives from its pattern among them; a storage that two share counts once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in (*net.parameters(), *net.buffers())}
    return sum(storages.values())


def peak_bytes(net: nn.Module, images: Tensor) -> int:
    """The most that one inference holds at a time beside weights and input: activations and temporaries.

    Counted at torch's own allocator (on the CPU from the profiler's allocations and releases in their order, inside of ops too), hence
    exact and the same every time, unlike the memory of the process. What a library keeps for itself (a GPU context, oneDNN's scratch
    space) is not seen.
    """
    with torch.inference_mode():
        net(images)                                         # plans and caches are made by the first one
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
            torch.cuda.reset_peak_memory_stats(images.device)
            before = torch.cuda.memory_allocated(images.device)
            net(images)
            torch.cuda.synchronize(images.device)
            return torch.cuda.max_memory_allocated(images.device) - before
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")     # or the profiler tells the terminal of every start, stop and missing GPU
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            net(images)
    events = [(event.start_ns(), event.nbytes()) for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        now += size
        most = max(most, now)
    return most


def file_size(plain: nn.Module, deployed: nn.Module) -> tuple[int, str]:
    """(bytes, form) of the smallest file that holds this net alone, header not counted: the tensors of the plain net, each as it is, or its
    nonzeros with one bit a weight, or its nonzeros with 32-bit CSR indices; or the deployed net's tensors as they are."""
    def smallest(tensor: Tensor) -> int:
        size, rows = tensor.element_size(), len(tensor) if tensor.dim() else 1
        nonzeros = int(tensor.count_nonzero())
        return min(size * tensor.numel(), size * nonzeros + 4 * -(-tensor.numel() // 32), (size + 4) * nonzeros + 4 * (rows + 1))

    whole = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(plain))
    packed = sum(smallest(tensor) for tensor in _tensors(plain))
    own = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(deployed))
    if own < packed:
        return own, "tensors of the deployed net"
    return packed, "nonzeros and their places" if packed < whole else "whole"


def size_of(plain: nn.Module, deployed: nn.Module, shape: Sequence[int], forms: Counter) -> dict:
    """`parameters` that take part, `flops` per sample, `file_bytes` and `file_form`; the deployed net's own where it is made of torch's
    layers and smaller, else those of the nonzeros."""
    weights = dict(plain.named_parameters())
    density = {name: float(weight.count_nonzero()) / max(1, weight.numel()) for name, weight in weights.items()}
    parameters = sum(int(weight.count_nonzero()) if weight.dim() > 1 else weight.numel() for weight in weights.values())
    flops = sparse_flops(layer_flops(plain, tuple(shape)), density)
    if set(forms) <= PLAIN_FORMS:
        parameters = min(parameters, sum(weight.numel() for weight in deployed.parameters()))
        flops = min(flops, float(sum(layer_flops(deployed, tuple(shape)).values())))
    size, form = file_size(plain, deployed)
    return {"parameters": parameters, "flops": flops, "file_bytes": size, "file_form": form}


def size_of_whole(net: nn.Module, shape: Sequence[int]) -> dict:
    """The figures of `size_of` for a dense net of this architecture, whatever its weights are."""
    return {"parameters": sum(weight.numel() for weight in net.parameters()), "flops": float(sum(layer_flops(net, tuple(shape)).values())),
            "file_bytes": sum(tensor.numel() * tensor.element_size() for tensor in _tensors(net)), "file_form": "whole"}


def deployment_of(deployed: nn.Module) -> dict:
    """What `SubnetBank.deploy` says of a net: `layers` [{layer, form, reason, ms, dense_ms}] (None: not measured), `notes`, and `difference`,
    the largest one to the masked net's outputs as a share of the largest output."""
    deployment = getattr(deployed, "deployment", None)
    keys = ("form", "reason", "ms", "dense_ms")
    return {"layers": [{"layer": layer.name} | {key: getattr(layer, key) for key in keys} for layer in getattr(deployment, "layers", ())],
            "notes": list(getattr(deployment, "notes", ())), "difference": getattr(deployment, "difference", None)}


def _tensors(net: nn.Module) -> list[Tensor]:
    return [value for value in net.state_dict().values() if isinstance(value, Tensor)]
