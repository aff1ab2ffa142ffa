"""SubnetBank: every sub-net of one training in one file, and any of them on a model at the price of a few pointers."""
import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sparsekern import ops
from sparsekern.deploy import bank_figures
from sparsekern.deploy.bank_active import Active, active_on, check_model, load_shared, make_dense, refuse_taken
from sparsekern.deploy.bank_file import FORMAT, SCHEMA, BankError, Parts, architecture, check_facts, check_meta, csr_layers, sibling, sparsity
from sparsekern.deploy.bank_masks import chains, elements, packed_words, planes
from sparsekern.deploy.compact import compact
from sparsekern.sparsity.layers import refuse_attached
from sparsekern.sparsity.patterns import Unstructured
from sparsekern.support.models import build_model, outline
from sparsekern.support.provenance import commit, finite, versions
from sparsekern.support.tensor_file import TensorFileError, load_tensors, save_tensors

_OWN = ("schema", "model", "versions", "commit", "architecture", "subnets", "layout")


@dataclass(frozen=True)
class Subnet:
    """One sub-net of a bank.

    pattern: "dense", "unstructured", "channel", or n:m such as "2:4".
    sparsity, nnz: exact fraction of zeros over the prunable weights, and how many are left. target: the sparsity that was asked for.
    accuracy: as measured at the end of the training, or None.
    masks: {parameter: packed int32 words, as `ops.pack_mask` makes them}; parameters without one are whole (layers that are stored as
        nonzeros have none either: their pattern is in the weights; `SubnetBank.bool_masks` has both).
    norms: {name in the state_dict: the tensor that replaces the model's own under this sub-net}.
    """
    name: str
    pattern: str
    sparsity: float
    nnz: int
    accuracy: float | None
    masks: dict[str, Tensor]
    norms: dict[str, Tensor]
    target: float | None = None


class SubnetBank:
    """The sub-nets of a training: the shared weights once, a packed mask per sub-net and weight, batch-norm tensors per sub-net.

    Make one with `from_sparsifier` or `load`.

    path: of the file it was loaded from or saved to, or None.
    meta: what is known of it, json-able: schema, model, algorithm, data, commit, versions, architecture (SHA-256 over names, shapes and dtypes
        of the state_dict), and a row per sub-net (name, pattern, target, sparsity, nnz, accuracy).
    weights: the model's state_dict, on the host.

    Size of the file in bytes, its header (JSON) aside; `size()` computes it:
        weights:  sum over distinct tensors of the state_dict: elements * bytes of the dtype
        masks:    sum over weights and chains of S nested distinct masks: 4 * ceil(log2(S + 1)) * ceil(n / 32), with n the weight's elements,
                  or its output rows where the masks keep whole rows; masks that keep everything take nothing
        norms:    sum over batch-norm tensors: distinct values that are not the model's own * elements * bytes of the dtype
    """

    def __init__(self, meta: dict, parts: Parts, path: Path | None = None):
        self.meta, self.weights, self.path, self._parts = meta, parts.weights, path, parts
        self._place = {row["name"]: place for place, row in enumerate(parts.subnets)}

    @classmethod
    @torch.no_grad()
    def from_sparsifier(cls, sparsifier, *, model: dict | None = None, accuracy: Mapping[str, float] | None = None, **facts) -> "SubnetBank":
        """The bank of a training, from its sparsifier, which must still be attached; nothing of it changes, everything is copied.

        Args:
            model: {"name": as `sparsekern train --model` takes it, "classes": n, "shape": [channels, height, width]}, so that the bank can
                build the model by itself; None: whoever uses it brings the model.
            accuracy: {sub-net: share of the test images}, for the sub-nets where it is known.
            facts: further json-able values for `meta`, e.g. algorithm="ast-gc", data="cifar10", seed=1.
        Raises:
            BankError: a sparsifier that was removed, a state_dict with things that are no tensors, an accuracy of no sub-net, facts under
                names that a bank uses itself, a description of a model that is none.
        """
        s, accuracy = sparsifier, dict(accuracy or {})
        if s._attached is None:
            raise BankError("this sparsifier was removed, and its sub-nets with it; make the bank before remove()")
        taken = [name for name in facts if name in _OWN]
        if taken:
            raise BankError(f"facts: {', '.join(taken)}: a bank says this itself; use another name")
        unknown = [name for name in accuracy if name not in s.subnets]
        if unknown:
            raise BankError(f"accuracy: unknown sub-net {unknown[0]!r}; there are {', '.join(s.subnets)}")
        with s.subnet(s.subnets[0]):
            state = s.model.state_dict()
            foreign = [name for name, value in state.items() if not isinstance(value, Tensor)]
            if foreign:
                raise BankError(f"the model's state_dict has {', '.join(foreign)}, which is no tensor")
            csr = csr_layers(s.model)
        weights = _host_copies(state)
        rows, norms, words = [], {}, {layer: {} for layer in s.masks.layers}
        for place, name in enumerate(s.subnets):
            pattern, nnz = s.patterns[name], s.masks.nnz(name)
            whole = isinstance(pattern, Unstructured) and pattern.sparsity == 0 and nnz == s.masks.numel
            rows.append({"name": name, "pattern": "dense" if whole else str(pattern), "target": pattern.sparsity,
                         "sparsity": sparsity(nnz, s.masks.numel), "nnz": nnz, "accuracy": accuracy.get(name)})
            for layer, mask in zip(s.masks.layers, s.masks.active(name)):
                if mask is not None:
                    words[layer][place] = ops.pack_mask(mask).cpu()
            with s.subnet(name):
                for key, value in s.model.state_dict().items():
                    if value.data_ptr() != state[key].data_ptr():
                        _note_norm(norms.setdefault(key, []), place, value.cpu(), weights[key])
        shape_of = dict(zip(s.masks.layers, (layer.shape for layer in s.layers)))
        masks = {layer: chains(given, shape_of[layer]) for layer, given in words.items() if given}
        stacked = {key: (torch.stack([value for value, _ in found]), [places for _, places in found]) for key, found in norms.items() if found}
        prunable = [layer.name for layer in s.layers if layer.counted]
        parts = Parts(weights, csr, prunable, {layer: found for layer, found in masks.items() if found}, stacked, rows)
        parts.check_rows()
        meta = finite({"schema": SCHEMA, "algorithm": type(s).__name__, **facts, "model": model, "versions": versions(), "commit": commit(),
                       "architecture": architecture(parts.signature), "subnets": rows})
        check_facts(meta)
        return cls(meta, parts)

    def save(self, path: Path | str) -> Path:
        """Write the bank as one safetensors file: complete on disk before it gets its name, with a checksum; whatever was there is replaced."""
        tensors, layout = self._parts.encode()
        self.path = save_tensors(path, FORMAT, tensors, {**self.meta, **layout})
        return self.path

    @classmethod
    def load(cls, path: Path | str) -> "SubnetBank":
        """Read a bank and check all of it.

        Raises:
            BankError: not a file of this format, damaged, written by a newer version, or one whose parts contradict each other.
        """
        path = Path(path)
        try:
            tensors, meta = load_tensors(path, FORMAT, "a bank of sub-nets")
        except TensorFileError as error:
            raise BankError(str(error)) from error
        try:
            check_meta(meta)
            parts = Parts.decode(tensors, meta)
            if meta.get("architecture") != architecture(parts.signature):
                raise BankError("its weights are not those of the architecture that it names")
        except (BankError, RecursionError) as error:
            raise BankError(f"{path.name}: {error}") from error
        del meta["layout"]
        meta.setdefault("model", None)
        return cls(meta, parts, path)

    # What is in it.

    def names(self) -> tuple[str, ...]:
        """The sub-nets."""
        return tuple(self._place)

    def subnet(self, name: str) -> Subnet:
        """One sub-net, its masks packed."""
        place = self._known(name)
        found = {key: self._parts.words(key, place) for key in self._parts.masks}
        return Subnet(**self._parts.subnets[place], masks={key: words for key, words in found.items() if words is not None},
                      norms=self._norms(place))

    def bool_masks(self, name: str) -> dict[str, Tensor]:
        """{parameter: bool mask of its dense shape} of a sub-net, also of the layers that are stored as nonzeros."""
        place = self._known(name)
        found = {key: ops.unpack_mask(words, self._parts.shape(key)) for key in self._parts.masks
                 if (words := self._parts.words(key, place)) is not None}
        for key, shape in self._parts.csr.items():
            ones = torch.ones_like(self.weights[sibling(key, "values")], dtype=torch.bool)
            found[key] = self._scatter(key, ones).view(shape)
        return found

    def size(self) -> dict[str, int]:
        """Bytes of the file by the formula of the class: weights, masks, norms and their total; the header is not in it."""
        parts = self._parts
        distinct = {id(value): value for value in parts.weights.values()}
        found = {"weights": sum(value.numel() * value.element_size() for value in distinct.values()),
                 "masks": sum(4 * planes(len(chain.members)) * packed_words(elements(parts.shape(name), chain.rows))
                              for name, family in parts.masks.items() for chain in family),
                 "norms": sum(len(members) * parts.weights[name].numel() * parts.weights[name].element_size()
                              for name, (_, members) in parts.norms.items())}
        return found | {"total": sum(found.values())}

    def describe(self) -> str:
        """The sub-nets as a table, one line each."""
        head = ("sub-net", "pattern", "sparsity", "weights", "accuracy")
        rows = [head] + [(row["name"], row["pattern"], f"{row['sparsity']:.4f}", f"{row['nnz']:,}",
                          "-" if row["accuracy"] is None else f"{row['accuracy']:.4f}") for row in self._parts.subnets]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        return "\n".join("  ".join(text.ljust(width) if column < 2 else text.rjust(width)
                                   for column, (text, width) in enumerate(zip(row, widths))) for row in rows)

    def __repr__(self) -> str:
        model = self.meta["model"]["name"] if self.meta["model"] else "a model of its own"
        size = self.size()["total"] / 1e6
        return f"SubnetBank({len(self._place)} sub-nets of {model}, {self.meta.get('algorithm')}, {size:.2f} MB)\n{self.describe()}"

    # On a model.

    def activate(self, model: nn.Module, name: str) -> nn.Module:
        """Make the model the named sub-net, in place; returns it.

        The first call checks the architecture, copies the shared weights into the model's tensors and puts every sub-net's masks and norms
        beside them; each further one only switches pointers. Weights never change. While a bank is active, `state_dict()` of the model shows
        the shared weights and the norms of the sub-net at hand. Layers that the bank stores as nonzeros become sparse layers. A bank
        takes the place of another one that is on the model.

        Raises:
            BankError: an unknown name, or a model of another architecture (the first difference is named); nothing has changed then.
            ValueError: a sparsifier is on the model.
        """
        place = self._known(name)
        active = active_on(model)
        if active is None or active.bank() is not self:
            refuse_taken(model)
            check_model(model, self._parts)
            if active is not None:
                active.remove(model)
            active = Active(self, model, self._parts)
        active.show(place)
        return model

    def release(self, model: nn.Module) -> nn.Module:
        """Give the plain model back: the shared weights, dense, with the norms of the first sub-net. Without a bank on it nothing happens."""
        active = active_on(model)
        if active is not None:
            active.remove(model)
        return model

    def model(self) -> nn.Module:
        """The model that the bank names, with the shared weights (as sparse layers where the bank has nonzeros only).

        Raises:
            BankError: it names none; call `activate` or `plain` with a model. ValueError: a model that this version cannot build.
        """
        made = self._build()
        load_shared(made, self._parts)
        return made

    @torch.no_grad()
    def plain(self, name: str, model: nn.Module | None = None) -> nn.Module:
        """The sub-net as a fresh plain module in eval mode: zeros where its masks hide, its own norms in place.

        Args:
            model: of the bank's architecture, copied and left alone; None: the model that the bank names.
        Raises:
            BankError: an unknown name, another architecture, no model named. ValueError: a sparsifier or a bank is on the model.
        """
        place = self._known(name)
        if model is not None:
            if active_on(model) is not None:
                raise BankError("a bank is active on this model; call release(model) first, or pass another one")
            refuse_attached(model)
            check_model(model, self._parts)
        made = self._build() if model is None else copy.deepcopy(model)
        load_shared(made, self._parts)
        make_dense(made)
        own = dict(made.named_parameters(remove_duplicate=False)) | dict(made.named_buffers(remove_duplicate=False))
        for key, value in self._norms(place).items():
            own[key].copy_(value)
        for key in self._parts.masks:
            words = self._parts.words(key, place)
            if words is not None:
                own[key].masked_fill_(~ops.unpack_mask(words, own[key].shape).to(own[key].device), 0)
        return made.eval()

    def deploy(self, name: str, device: torch.device | str = "cpu", batch: int = 128, *, model: nn.Module | None = None,
               example: Tensor | None = None, fold: bool = True, **options) -> nn.Module:
        """The sub-net as a plain module that is really smaller or faster on `device`; its attribute `deployment` says layer by layer why.

        Args:
            batch: images at a time, for which layers are measured.
            model: as in `plain`. example: inputs to measure with, where the bank does not know the shape of an image, or in place of `batch`.
            fold: batch norms become part of the layers before them, as in the report that `fit` asks; False leaves them.
            options: as in `compact`.
        Raises:
            BankError: as `plain`; no example for a bank that names no model. ValueError: what `compact` refuses.
        """
        plain = self.plain(name, model)
        if example is None:
            if self.meta["model"] is None:
                raise BankError("this bank does not say how large an image is; pass example=, a batch of inputs")
            if type(batch) is not int or batch < 1:
                raise BankError(f"batch: expected at least 1 image, got {batch!r}")
            example = torch.rand(batch, *self.meta["model"]["shape"], generator=torch.Generator().manual_seed(0))
        net, net.deployment = compact(plain, self.bool_masks(name), self._parts.subnets[self._known(name)]["pattern"], example, device=device,
                                      fold=fold, **options)
        return net

    def fit(self, latency_ms: float | None = None, memory_mb: float | None = None) -> str:
        """Name of the most accurate sub-net that keeps the limits, by what `sparsekern report` measured of this file on this machine.

        Args and errors: those of `bank_figures.fit`.
        """
        return bank_figures.fit(self, latency_ms, memory_mb)

    def _build(self) -> nn.Module:
        named = self.meta["model"]
        if named is None:
            raise BankError("this bank does not say which model it is of; pass model=")
        with torch.random.fork_rng(devices=[]):             # the fresh weights are replaced, and nobody's random numbers move
            made = outline(named, self.weights.values())
            check_model(made, self._parts)                  # before the numbers of a file become memory
            if any(parameter.is_meta for parameter in made.parameters()):
                made = build_model(named["name"], classes=named["classes"], shape=tuple(named["shape"]))
        return made

    def _norms(self, place: int) -> dict[str, Tensor]:
        return {key: values[index] for key, (values, members) in self._parts.norms.items()
                for index, places in enumerate(members) if place in places}

    def _scatter(self, key: str, values: Tensor) -> Tensor:
        crow, col = self.weights[sibling(key, "crow")], self.weights[sibling(key, "col")]
        shape = self._parts.csr[key]
        cols = torch.Size(shape[1:]).numel()
        rows = torch.repeat_interleave(torch.arange(shape[0]), crow.diff().long())
        return values.new_zeros(shape[0] * cols).index_copy_(0, rows * cols + col, values)

    def _known(self, name: str) -> int:
        if name not in self._place:
            raise BankError(f"unknown sub-net {name!r}; there are {', '.join(self._place)}")
        return self._place[name]


def _host_copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the host in their memory order; names of one tensor share one."""
    made: dict[tuple, Tensor] = {}
    found = {}
    for name, value in state.items():
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype) if value.numel() else (name,)
        if key not in made:
            made[key] = torch.empty_like(value, device="cpu").copy_(value)
        found[name] = made[key]
    return found


def _note_norm(found: list[tuple[Tensor, list[int]]], place: int, value: Tensor, own: Tensor) -> None:
    """Add a sub-net's tensor to the distinct ones; the model's own need not be kept."""
    if _same_bits(value, own):
        return
    for known, places in found:
        if _same_bits(value, known):
            places.append(place)
            return
    found.append((value.clone(), [place]))


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
