"""compact: from a masked net to a plain module that is really smaller or faster on this machine, measured beside the dense net."""
import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sparsekern.deploy.dead_channels import living_channels
from sparsekern.deploy.deployment import Deployment, LayerForm
from sparsekern.deploy.fold import fold_norms
from sparsekern.deploy.layer_forms import (
    Timer,
    choose_form,
    csr_forms,
    memory_order,
    missing_for_sp24,
    nm_forms,
    set_memory_order,
    stored_bytes,
    time_beside,
)
from sparsekern.deploy.timing import usable_device
from sparsekern.sparsity.channel_groups import BACKENDS as FOLLOWERS
from sparsekern.sparsity.channel_groups import find_channel_groups
from sparsekern.sparsity.layers import refuse_attached
from sparsekern.sparsity.patterns import NM
from sparsekern.sparsity.slim import slim
from sparsekern.sparsity.sparsify import exchange, exchangeable, input_shapes
from sparsekern.support.flops import layer_flops

FORMS = ("auto", "dense", "csr", "packed", "sp24")
ORDERS = ("auto", "keep", "contiguous", "channels_last")
_WORTH = 0.95                                                   # of the dense net's time: a smaller gain is not told from noise
_EXACT = {torch.float64: 1e-9, torch.float32: 1e-3}             # a slimmed net that differs by more is not believed; half types: 0.05


@torch.no_grad()
def compact(model: nn.Module, masks: Mapping[str, Tensor], pattern: str, example: Tensor, *, device: torch.device | str = "cpu",
            fold: bool = False, backend: str = "auto", rounds: int = 9, prefer: str = "speed", dtype: torch.dtype | None = None,
            groups: str = "own", memory_format: str = "auto", timer: Timer | None = None) -> tuple[nn.Module, Deployment]:
    """A plain module for inference that computes what the masked net computes, and the report of what it is made of.

    "channel": channels that are zeros whatever comes in are cut out. "unstructured": convolutions and linear layers hold only their nonzeros
    (CSR). "n:m": packed kept weights. Each layer takes the form that is the quickest for its own input at the batch of `example`; the whole
    net is measured beside the dense one then, in the model's memory order and in the other one, and the quicker is taken. The dense net is
    given the same orders (and `fold`); while the net is not quicker than the quickest dense one by a twentieth, the half of the layers that
    gain the least goes back to dense.

    Args:
        model: a plain module; it is copied, never changed. What the masks hide is set to zero in the copy.
        masks: {parameter name: bool tensor of its shape}; parameters without one are whole.
        pattern: "dense", "unstructured", "channel" or "n:m" such as "2:4", n the number kept.
        example: [batch, ...] inputs, of the batch to measure at.
        device: where it will run, with the number of threads torch has now.
        fold: batch norms become part of the layers before them, where nothing else reads those.
        backend: "auto" measures; "dense", "csr", "packed" or "sp24" is taken wherever a layer has that form, slower or not.
        rounds: of each measurement; medians count.
        prefer: "speed", or "memory": the smallest form that takes at most twice the dense layer's time, and no layer goes back.
        dtype: floating type of the weights and the inputs; None: as they are.
        memory_format: of the convolutions' weights: "auto" measures the model's own order and the other one; "keep", "contiguous" or
            "channels_last" is taken, slower or not. Inputs may come in any order: the conversion is part of what is measured.
        groups: who follows coupled channels, as the backend of `find_channel_groups`.
        timer: ({name: (module, input)}, rounds) -> {name: milliseconds}; default `time_beside`.
    Returns:
        (module, Deployment). The module is in eval mode, without gradients; it can be copied and saved as any other.
    Raises:
        ValueError: an unknown option, a mask that does not fit, an example that the model does not take, a sparsifier on the model, a device
            that is not there. TypeError: an argument of another type.
    """
    pattern = _check_options(model, pattern, backend, prefer, groups, memory_format, rounds, dtype)
    where, timer = usable_device("compact", device), timer or time_beside
    plain = _masked(model, masks).to(where, dtype)
    example = _placed(example, where, dtype)
    expected = _run(plain, example)
    kind = next((p.dtype for p in plain.parameters() if p.is_floating_point()), torch.get_default_dtype())
    notes: list[str] = []
    net = plain
    if pattern == "channel":
        net = _slimmed(plain, example, groups, expected, notes)
    rows = _dense_rows(plain, net)
    dense, folded, left = plain, (), {}
    if fold:
        dense = copy.deepcopy(plain)
        folded, left = fold_norms(dense, example[:1])
        if net is not plain:
            folded, left = fold_norms(net, example[:1])
    net = dense if net is plain else net
    options = {"backend": backend, "prefer": prefer, "rounds": rounds, "timer": timer}
    if isinstance(pattern, NM) and (missing := missing_for_sp24(pattern, where, kind)):
        notes.append(missing)
    choices = []
    for order, treated in _in_orders(dense, memory_format, example, expected, notes).items():
        choice = _Choice(treated, treated, dict(rows), {})
        if net is not dense:
            choice.net = net if order in (memory_order(net), "mixed") else set_memory_order(copy.deepcopy(net), order)
        elif pattern == "unstructured" or isinstance(pattern, NM):
            choice.net = copy.deepcopy(treated)
            choice.spare = _exchanged(choice.net, masks, pattern, example, choice.rows, options)
            choice.net = choice.net if choice.spare else treated
        choices.append(choice)
    net, rows, times = _measured(plain, choices, example, notes, options, asked=[
        what for what, yes in ((f'backend="{backend}"', backend != "auto"), ('prefer="memory"', prefer == "memory"), ("fold=True", fold),
                               (f'memory_format="{memory_format}"', memory_format != "auto")) if yes])
    if any(row.form == "slim" for row in rows.values()):
        _time_slimmed(plain, net, example, rows, options)
    output = _run(net, example)
    dense_flops, flops = _flops(plain, net, rows, example, notes)
    return net, Deployment(
        str(pattern), str(where), str(kind).removeprefix("torch."), len(example), torch.get_num_threads(), tuple(rows.values()), folded, left,
        tuple(notes), times["deployed"], times["dense"], times["best"], stored_bytes(net), stored_bytes(plain), flops, dense_flops,
        _difference(output, expected), memory_order(net) or "contiguous")


# What comes in.

def _check_options(model, pattern, backend, prefer, groups, memory_format, rounds, dtype) -> str | NM:
    if not isinstance(model, nn.Module):
        raise TypeError(f"compact: model: expected a module, got {type(model).__name__}")
    for name, value, known in (("backend", backend, FORMS), ("prefer", prefer, ("speed", "memory")), ("groups", groups, FOLLOWERS),
                               ("memory_format", memory_format, ORDERS)):
        if value not in known:
            raise ValueError(f"compact: {name}: expected one of {', '.join(known)}, got {value!r}")
    if not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"compact: rounds: expected a whole number of at least 1, got {rounds!r}")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"compact: dtype: expected a floating type such as torch.bfloat16, got {dtype!r}")
    refuse_attached(model)
    if any("forward" in vars(module) for module in model.modules()):
        raise ValueError("compact: model: another forward is attached to one of its modules; remove it first")
    if pattern in ("dense", "unstructured", "channel"):
        return pattern
    try:
        return NM.parse(pattern)
    except (ValueError, TypeError) as error:
        raise ValueError(f'compact: pattern: expected "dense", "unstructured", "channel" or n:m such as "2:4", got {pattern!r}') from error


def _masked(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """A copy in eval mode, without gradients, zeros where the masks hide."""
    if not isinstance(masks, Mapping):
        raise TypeError(f"compact: masks: expected {{parameter name: bool tensor}}, got {type(masks).__name__}")
    own = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        if name not in own:
            raise ValueError(f"compact: masks: {name!r} is no parameter of the model; they are {', '.join(own)}")
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != own[name].shape:
            got = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"compact: masks: {name}: expected a bool tensor of shape {list(own[name].shape)}, got {got}")
    made = copy.deepcopy(model).eval().requires_grad_(False)
    for name, parameter in made.named_parameters(remove_duplicate=False):
        if name in masks:
            parameter.masked_fill_(~masks[name].to(parameter.device), 0)
    return made


def _placed(example: Tensor, where: torch.device, dtype: torch.dtype | None) -> Tensor:
    if not isinstance(example, Tensor):
        raise TypeError(f"compact: example: expected a tensor [batch, ...], got {type(example).__name__}")
    if example.dim() == 0 or example.shape[0] == 0:
        raise ValueError(f"compact: example: expected at least one input, got shape {list(example.shape)}")
    return example.detach().to(where, dtype if example.is_floating_point() else None)


def _run(net: nn.Module, example: Tensor) -> Tensor:
    try:
        output = net(example)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"compact: example: the model does not take {example.dtype} {list(example.shape)}: {first}") from error
    if not isinstance(output, Tensor):
        raise ValueError(f"compact: model: expected one tensor as its output, got {type(output).__name__}")
    return output


def _difference(output: Tensor, expected: Tensor) -> float:
    if output.numel() == 0:
        return 0.0
    return float((output.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1e-30))


# Channels.

def _slimmed(plain: nn.Module, example: Tensor, backend: str, expected: Tensor, notes: list[str]) -> nn.Module:
    """The net without its dead channels; `plain` itself where none can be cut out, with a note that says why."""
    try:
        with torch.enable_grad():                                   # torch-pruning follows the autograd graph
            groups = find_channel_groups(plain, example[:1], backend=backend)
        keep, told = living_channels(plain, groups)
        notes += told
        if not keep:
            notes.append("no channel can be cut out: the masked dense net is kept")
            return plain
        net = slim(plain, groups, keep)
    except ValueError as error:
        notes.append(f"channels cannot be followed, so the masked dense net is kept: {error}")
        return plain
    wrong = _difference(_run(net, example), expected)
    if not wrong <= _EXACT.get(expected.dtype, 0.05):
        notes.append(f"the slimmed net would differ by {wrong:.1e} of the largest output, so the masked dense net is kept")
        return plain
    return net


def _time_slimmed(plain: nn.Module, net: nn.Module, example: Tensor, rows: dict[str, LayerForm], options: dict) -> None:
    pairs = {name: (plain.get_submodule(name), net.get_submodule(name)) for name, row in rows.items() if row.form == "slim"}
    wide, narrow = (input_shapes(one, example, [pair[number] for pair in pairs.values()]) for number, one in enumerate((plain, net)))
    for name, (before, now) in pairs.items():
        if before in wide and now in narrow:
            times = options["timer"]({"dense": (before, _draw(before, wide[before])), "slim": (now, _draw(now, narrow[now]))}, options["rounds"])
            rows[name] = replace(rows[name], dense_ms=times["dense"], ms=times["slim"])


# Layers.

def _dense_rows(plain: nn.Module, net: nn.Module) -> dict[str, LayerForm]:
    rows = {}
    for name, module in plain.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            before, now = tuple(module.weight.shape), tuple(net.get_submodule(name).weight.shape)
            size = "x".join(map(str, now))
            rows[name] = LayerForm(name, before, torch.Size(now).numel(), "dense" if now == before else "slim", None, None,
                                   "whole" if now == before else f"cut to {size}")
    return rows


def _exchanged(net: nn.Module, masks: Mapping[str, Tensor], pattern: str | NM, example: Tensor, rows: dict[str, LayerForm],
               options: dict) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Give every masked layer of the net the form that is best, in place."""
    found, left = exchangeable(net, "compact", skip_first=False, skip_last=False, skip_depthwise=False, only=None, exclude=None)
    shapes, new = input_shapes(net, example, list(found.values())), {}
    for name, row in rows.items():
        mask, why = masks.get(f"{name}.weight"), left.get(f"{name}.weight", "")
        module = found.get(f"{name}.weight")
        if mask is None or bool(mask.all()):
            why = "whole: no mask hides any of it"
        elif module is not None and module not in shapes:
            why = "the forward pass does not reach it"
        elif module is not None and options["backend"] == "dense":
            why = 'backend="dense" was asked for'
        if why or module is None:
            rows[name] = replace(row, reason=why or "it cannot be exchanged")
            continue
        try:
            mask = mask.to(module.weight.device)
            forms = nm_forms(module, mask, pattern) if isinstance(pattern, NM) else csr_forms(module, mask)
        except (ValueError, TypeError) as error:
            rows[name] = replace(row, reason=f"no other form: {error}")
            continue
        chosen = choose_form(module, forms, _draw(module, shapes[module]), **options)
        nnz = row.nnz if chosen.module is None else chosen.module.nnz
        rows[name] = replace(row, nnz=nnz, form=chosen.form, dense_ms=chosen.dense_ms, ms=chosen.ms, reason=chosen.reason)
        if chosen.module is not None:
            new[name] = chosen.module.eval().requires_grad_(False), module
    exchange(net, {module: form for form, module in new.values()})
    return new


def _draw(module: nn.Module, seen: tuple) -> Tensor:
    """An input of the layer's shape and memory order."""
    shape, dtype, _ = seen
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(module.weight.device, dtype)
    order = module.weight.dim() == 4 and not module.weight.is_contiguous() and module.weight.is_contiguous(memory_format=torch.channels_last)
    return x.contiguous(memory_format=torch.channels_last) if order else x


# The whole net.

@dataclass
class _Choice:
    """A net in one memory order, and the dense net that was given the same order and folding."""
    net: nn.Module
    dense: nn.Module
    rows: dict[str, LayerForm]
    spare: dict[str, tuple[nn.Module, nn.Module]]                   # {layer: (what runs, the dense layer that it replaces)}


def _in_orders(net: nn.Module, wanted: str, example: Tensor, expected: Tensor, notes: list[str]) -> dict[str | None, nn.Module]:
    """{memory order: the net in it}, its own order first; one that the model's code does not bear is left out, or refused if asked for."""
    own = memory_order(net)
    if own is None or wanted in ("keep", own):
        return {own: net}
    order = wanted if wanted != "auto" else "contiguous" if own == "channels_last" else "channels_last"
    other = set_memory_order(copy.deepcopy(net), order)
    try:
        wrong = _difference(_run(other, example), expected)
        why = "" if wrong <= _EXACT.get(expected.dtype, 0.05) else f"outputs would differ by {wrong:.1e} of the largest"
    except ValueError as error:
        why = str(error)
    if why and wanted != "auto":
        raise ValueError(f"compact: memory_format: the model cannot run in {order}: {why}")
    if why:
        notes.append(f"{order} is not taken: {why}")
    return ({own: net} if wanted == "auto" else {}) | ({} if why else {order: other})


def _measured(plain, choices, example, notes, options, asked) -> tuple[nn.Module, dict[str, LayerForm], dict[str, float]]:
    """The quickest net, no slower than the quickest dense one or with a note that says so; its rows; and what it and the dense ones take."""
    denses = list({id(net): net for net in (plain, *(choice.dense for choice in choices))}.values())

    def measure(nets: list[nn.Module]) -> dict[int, float]:
        named = {"dense" if net is plain else f"dense {memory_order(net)}": net for net in denses}
        for net in nets:
            if net not in denses:
                named["deployed" if "deployed" not in named else f"deployed {memory_order(net)}"] = net
        times = options["timer"]({name: (net, example) for name, net in named.items()}, options["rounds"])
        return {id(net): times[name] for name, net in named.items()}

    def slower() -> float:
        return times[id(net)] / min(times[id(dense)] for dense in denses)

    times, may_return = measure([choice.net for choice in choices]), options["backend"] == "auto" and options["prefer"] == "speed"
    choice = min(choices, key=lambda choice: (stored_bytes(choice.net) if options["prefer"] == "memory" else 0, times[id(choice.net)]))
    net, rows, spare = choice.net, choice.rows, choice.spare
    while slower() > _WORTH and spare and may_return:
        order = sorted(spare, key=lambda name: rows[name].dense_ms - rows[name].ms)
        why = f"the whole net took {slower():.2f}x the time of dense" + (", no gain beyond noise" if slower() <= 1 else "")
        back = order[:(len(order) + 1) // 2]
        exchange(net, {spare[name][0]: spare[name][1] for name in back})
        for name in back:
            module = spare.pop(name)[1]
            rows[name] = replace(rows[name], nnz=module.weight.numel(), form="dense", ms=rows[name].dense_ms, reason=f"put back: {why}")
        notes.append(f"{why}: {', '.join(back)} put back to dense")
        net = net if spare else choice.dense
        times = measure([net])
    if slower() > 1 and may_return:
        why = f"the slimmed net took {slower():.2f}x the time of dense"
        cut = [name for name, row in rows.items() if row.form == "slim"]
        if cut:
            notes.append(f"{why}: the masked dense net is kept")
        for name in cut:
            rows[name] = replace(rows[name], nnz=torch.Size(rows[name].shape).numel(), form="dense", reason=f"put back: {why}")
        net = min((choice.dense for choice in choices), key=lambda net: times[id(net)])
    if slower() > 1:
        notes.append(f"slower than dense as a whole: {slower():.2f}x its time" + (f", as {' and '.join(asked)} was asked for" if asked else ""))
    return net, rows, {"deployed": times[id(net)], "dense": times[id(plain)], "best": min(times[id(dense)] for dense in denses)}


def _flops(plain, net, rows, example, notes) -> tuple[float | None, float | None]:
    """(dense, deployed) FLOPs of a sample: a layer's by what its weight holds."""
    try:
        dense = layer_flops(plain, tuple(example.shape[1:]))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        notes.append(f"FLOPs are not counted: {(str(error).splitlines() or [type(error).__name__])[0]}")
        return None, None
    if any(row.form == "slim" for row in rows.values()):
        return float(sum(dense.values())), float(sum(layer_flops(net, tuple(example.shape[1:])).values()))
    share = {f"{name}.weight": row.nnz / max(1, torch.Size(row.shape).numel()) for name, row in rows.items()}
    return float(sum(dense.values())), float(sum(flops * share.get(name, 1.0) for name, flops in dense.items()))
