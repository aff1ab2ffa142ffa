"""Saving and loading a sparsifier: plain tensors by name and json-able values, checked before anything changes."""
import dataclasses
import json

import torch

_FORMAT = 1


def save(sparsifier) -> dict:
    """{"tensors": copies by name, "meta": json-able values}; a run that loads them goes on bit for bit."""
    s = sparsifier
    tensors = s.masks.packed()
    for bank, name in enumerate(s.subnets[:len(s.norms.banks)]):
        tensors |= {f"norm/{name}/{key}": value.detach().clone() for key, value in s.norms.banks[bank].items()}
    tensors |= {f"previous/{layer}": grad for layer, grad in zip(s.masks.layers, s._previous or s._nothing) if grad is not None}
    tensors |= {key: value.clone() for key, value in s.log.tensors().items()}
    tensors |= {f"extra/{key}": value.clone() for key, value in s.extra_tensors().items()}
    history = [record | {"flips": torch.as_tensor(record["flips"]).tolist()} for record in s.history]
    meta = _identity(s) | {"steps": s.steps, "counts": {name: s.masks.counts(name) for name in s.masks.names}, "history": history,
                           "extra": s.extra_state()}
    return {"tensors": tensors, "meta": meta}


@torch.no_grad()
def load(sparsifier, saved: dict) -> None:
    """Take on what `save` returned.

    Raises:
        ValueError: a state of another algorithm, model or configuration, or a damaged one; the entry is named, and nothing has changed then.
    """
    s = sparsifier
    if not isinstance(saved, dict) or not isinstance(saved.get("tensors"), dict) or not isinstance(saved.get("meta"), dict):
        raise ValueError("sparsifier state: expected {'tensors': {...}, 'meta': {...}} as state_dict() returns it")
    tensors, meta = saved["tensors"], saved["meta"]
    for key, own in _identity(s).items():
        _compare(key, own, meta.get(key))
    for key, kind in (("steps", int), ("counts", dict), ("history", list), ("extra", dict)):
        if not isinstance(meta.get(key), kind):
            raise ValueError(f"sparsifier state: {key}: expected {kind.__name__}, got {meta.get(key)!r}")
    _compare("extra's entries", sorted(s.extra_state()), sorted(meta["extra"]))
    expected = {key: value for key, value in save(s)["tensors"].items() if not key.startswith(("previous/", "extra/"))}
    optional = {f"previous/{layer}": weight for layer, weight in zip(s.masks.layers, s.weights)}
    for key in expected:
        if key not in tensors:
            raise ValueError(f"sparsifier state: {key} is missing")
    extra = {key.removeprefix("extra/"): tensors[key] for key in tensors if key.startswith("extra/")}
    for key, tensor in tensors.items():
        if key.startswith("extra/"):
            continue
        own = expected.get(key, optional.get(key))
        if own is None:
            raise ValueError(f"sparsifier state: {key} belongs to no layer, sub-net or batch norm of this model")
        if own.shape != tensor.shape or own.dtype != tensor.dtype:
            raise ValueError(f"sparsifier state: {key}: expected {own.dtype} {list(own.shape)}, got {tensor.dtype} {list(tensor.shape)}")
    masks, counts = s.masks.unpacked(tensors)
    for name, found in counts.items():
        _compare(f"kept weights per layer in the masks of {name}", meta["counts"].get(name), found)

    s.load_extra_state(meta["extra"])                       # which may refuse, too
    s.masks.restore(masks, counts)
    for bank, name in enumerate(s.subnets[:len(s.norms.banks)]):
        for key, own in s.norms.banks[bank].items():
            own.copy_(tensors[f"norm/{name}/{key}"])
    previous = [_like(tensors.get(f"previous/{layer}"), weight) for layer, weight in zip(s.masks.layers, s.weights)]
    s._previous = None if all(grad is None for grad in previous) else previous
    for key, own in s.log.tensors().items():
        own.copy_(tensors[key])
    s.steps, s.history = meta["steps"], [dict(record) for record in meta["history"]]
    s.load_extra_tensors(extra)


def _like(saved, weight):
    """A tensor of the weight's layout, as the ops ask of gradients; None stays None."""
    return None if saved is None else torch.empty_like(weight, requires_grad=False).copy_(saved)


def _identity(s) -> dict:
    """What must agree between the run that saved and the one that loads."""
    return {"format": _FORMAT, "algorithm": type(s).__name__, "subnets": list(s.subnets),
            "config": json.loads(json.dumps(dataclasses.asdict(s.config))),
            "layers": {layer.name: list(layer.shape) for layer in s.layers}}


def _compare(what: str, own, saved) -> None:
    if own == saved:
        return
    if isinstance(own, dict) and isinstance(saved, dict):
        for key in [*own, *saved]:
            _compare(f"{what}: {key}", own.get(key), saved.get(key))
    raise ValueError(f"sparsifier state: {what}: here {own!r}, in the saved state {saved!r}")
