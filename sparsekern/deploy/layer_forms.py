"""The forms that a masked layer can take for inference, what each takes of time and memory here, and which one is best."""
import copy
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsekern.nn import NMConv2d, NMLinear, SparseConv2d, SparseLinear
from sparsekern.nn.nm_weight import as_matrix
from sparsekern.sparsity.layers import Layer
from sparsekern.sparsity.nm_groups import obstacle
from sparsekern.sparsity.patterns import NM

MEMORY_SLOWDOWN = 2.0                           # prefer="memory" takes a smaller form that takes at most so many times the dense layer's time
_LEAST, _BUDGET_S, _SHORT_S, _MOST = 3, 1.0, 0.02, 100
Timer = Callable[[Mapping[str, tuple[nn.Module, Tensor]], int], dict[str, float]]


@torch.no_grad()
def time_beside(nets: Mapping[str, tuple[nn.Module, Tensor]], rounds: int) -> dict[str, float]:
    """{name: median milliseconds} of modules on their inputs, run in turn in alternating order; one round goes before.

    `rounds` of them; more where all are quick, and at least three where they take seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in nets}
    began = time.perf_counter()
    for number in range(max(rounds, _MOST) + 1):
        for name in list(nets) if number % 2 else reversed(list(nets)):
            module, x = nets[name]
            started = _now(x.device)
            module(x)
            if number:
                times[name].append(1e3 * (_now(x.device) - started))
        spent = time.perf_counter() - began
        if number >= rounds and spent > _SHORT_S * len(nets) or number >= min(rounds, _LEAST) and spent > _BUDGET_S * len(nets):
            break
    return {name: statistics.median(seen) for name, seen in times.items()}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def stored_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers, unsaved buffers too; what is there twice counts once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in [*module.parameters(), *module.buffers()])


def memory_order(net: nn.Module) -> str | None:
    """Of the weights of all convolutions: "contiguous", "channels_last" or "mixed"; None: there is none."""
    orders = set()
    for weight in _convolved(net):
        plain, last = (torch.empty(weight.shape, device="meta", memory_format=order).stride()
                       for order in (torch.contiguous_format, torch.channels_last))
        if plain != last:                                   # of one input and 1x1 is in both
            orders.add("channels_last" if weight.stride() == last else "contiguous")
    return orders.pop() if len(orders) == 1 else "mixed" if orders else None


@torch.no_grad()
def set_memory_order(net: nn.Module, order: str) -> nn.Module:
    """Lay the weights of all convolutions out so, in place; what comes in is then converted by the first of them, and stays so behind it."""
    for weight in _convolved(net):
        weight.data = weight.data.to(memory_format=torch.channels_last if order == "channels_last" else torch.contiguous_format)
    return net


def _convolved(net: nn.Module) -> list[nn.Parameter]:
    return [module.weight for module in net.modules() if isinstance(module, nn.Conv2d) and "weight" in module._parameters]


@dataclass(frozen=True)
class Chosen:
    """The form that runs (None: the dense layer stays), its name, the times of both and the reason."""
    module: nn.Module | None
    form: str
    dense_ms: float | None
    ms: float | None
    reason: str


def csr_forms(module: nn.Module, mask: Tensor) -> dict[str, nn.Module]:
    """{"csr": the layer}. ValueError: a layer that has no such form."""
    if isinstance(module, nn.Linear):
        return {"csr": SparseLinear.from_dense(module, mask).for_inference()}
    return {"csr": SparseConv2d.from_dense(module, mask)}


def nm_forms(module: nn.Module, mask: Tensor, pattern: NM) -> dict[str, nn.Module]:
    """{product: layer}: the packed layer with each of its products, and the CSR layer. ValueError: none of them, or a mask that is not n:m.

    CSR is the layer of its own here, not the product of the packed one, which would hold the weights twice for it.
    """
    why = obstacle(Layer("", module.weight, [module]), pattern)
    if why is not None:
        raise ValueError(why)
    groups = as_matrix(mask).unflatten(1, (-1, pattern.group)).sum(2)
    if not bool((groups == pattern.keep).all()):
        raise ValueError(f"its mask is not {pattern}: a group keeps {int(groups[groups != pattern.keep][0])}")
    kind = NMLinear if isinstance(module, nn.Linear) else NMConv2d
    packed = kind.from_dense(module, pattern.keep, pattern.group, refresh="fixed", mask=mask).pack(backend="packed")
    forms: dict[str, nn.Module] = {"packed": packed}
    if "sp24" in packed.backends:
        forms["sp24"] = copy.deepcopy(packed)
        forms["sp24"].backend = "sp24"
    return forms | csr_forms(module, mask)


@torch.no_grad()
def choose_form(module: nn.Module, forms: Mapping[str, nn.Module], x: Tensor, *, backend: str, prefer: str, rounds: int, timer: Timer) -> Chosen:
    """Measure the forward pass of the dense layer and of its forms on x; ties go to the dense one, then to the first form.

    prefer="memory": of the forms that take fewer bytes than the dense layer, and at most MEMORY_SLOWDOWN times its time, the smallest.
    """
    able, failed = {}, []
    for name, form in forms.items():
        if backend not in ("auto", name):
            continue
        try:
            form(x)
            able[name] = form
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            failed.append(f"{name} cannot run here ({(str(error).splitlines() or [type(error).__name__])[0]})")
    tail = "".join(f"; {text}" for text in failed)
    if not able:
        return Chosen(None, "dense", None, None, "no other form" + (tail or f': it has {", ".join(forms)}, and backend="{backend}" was asked for'))
    times = timer({"dense": (module, x)} | {name: (form, x) for name, form in able.items()}, rounds)
    dense_ms, on = times["dense"], f"input {list(x.shape)}: "
    best = min(able, key=lambda name: times[name])
    if backend == "auto" and prefer == "memory":
        size, sizes = stored_bytes(module), {name: stored_bytes(form) for name, form in able.items()}
        small = [name for name in able if sizes[name] < size and times[name] <= MEMORY_SLOWDOWN * dense_ms]
        if not small:
            return Chosen(None, "dense", dense_ms, dense_ms, f"{on}no form is smaller than dense at up to {MEMORY_SLOWDOWN:g}x its time" + tail)
        best = min(small, key=lambda name: (sizes[name], times[name]))
        why = f"{best} takes {sizes[best] / size:.2f} of the bytes and {times[best] / dense_ms:.2f} of the time of dense"
        return Chosen(able[best], best, dense_ms, times[best], on + why + tail)
    if times[best] < dense_ms:
        return Chosen(able[best], best, dense_ms, times[best], f"{on}{best} is {dense_ms / times[best]:.1f}x as fast as dense{tail}")
    slower = f"{on}{best} takes {times[best] / dense_ms:.1f}x the time of dense"
    if backend != "auto":
        return Chosen(able[best], best, dense_ms, times[best], f'{slower}, but backend="{backend}" was asked for{tail}')
    return Chosen(None, "dense", dense_ms, dense_ms, f"{slower}, so dense is kept{tail}")


def missing_for_sp24(pattern: NM, device: torch.device, dtype: torch.dtype) -> str:
    """What a GPU's sparse tensor cores would want; empty where nothing is missing."""
    if device.type != "cuda" or dtype in (torch.float16, torch.bfloat16) or pattern.keep > 2 or pattern.group % 4:
        return ""
    return f"sparse tensor cores multiply float16 or bfloat16, the weights are {dtype}: pass dtype=torch.float16 to have them measured"

