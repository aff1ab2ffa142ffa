"""A bank as tensors and JSON, and everything that is looked at before a file is believed."""
import hashlib
import json
import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from sparsekern import ops
from sparsekern.deploy.bank_masks import Chain, popcount
from sparsekern.nn import SparseLinear, SparseWeight
from sparsekern.sparsity.patterns import NM
from sparsekern.support.models import MOST_VALUES

FORMAT = "sparsekern-bank"
SCHEMA = 1
PATTERNS = ("dense", "unstructured", "channel")             # and n:m
_ROW = {"name", "pattern", "target", "sparsity", "nnz", "accuracy"}


class BankError(ValueError):
    """A bank that cannot be used, or not with this model; the message says why."""


class Parts:
    """What a bank consists of, in memory as in the file.

    weights: the model's state_dict on the host; tied names share one tensor.
    csr: {name of the weight: dense shape} of layers that exist as nonzeros only.
    prunable: names of the weights that sparsity counts.
    masks: {parameter: its chains}.
    norms: {name in the state_dict: ([k, *shape] values, per value the sub-nets that have it)}; the others have the one in `weights`.
    subnets: rows of the metadata: name, pattern, target, sparsity, nnz, accuracy.
    """

    def __init__(self, weights: dict[str, Tensor], csr: dict[str, list[int]], prunable: list[str], masks: dict[str, list[Chain]],
                 norms: dict[str, tuple[Tensor, list[list[int]]]], subnets: list[dict]):
        self.weights, self.csr, self.prunable, self.masks, self.norms, self.subnets = weights, csr, prunable, masks, norms, subnets
        self.signature = signature(weights, csr)

    def shape(self, name: str) -> list[int]:
        """Of a parameter, dense."""
        return self.csr[name] if name in self.csr else list(self.weights[name].shape)

    def nnz(self, place: int) -> int:
        """Kept weights of a sub-net among the prunable ones, counted."""
        total = 0
        for name in self.prunable:
            if name in self.csr:
                total += self.weights[sibling(name, "values")].numel()
                continue
            words = self.words(name, place)
            total += self.weights[name].numel() if words is None else popcount(words)
        return total

    def words(self, name: str, place: int) -> Tensor | None:
        """Packed mask of a parameter under a sub-net, None where it is whole."""
        for chain in self.masks.get(name, ()):
            for position, members in enumerate(chain.members):
                if place in members:
                    return chain.packed(position, self.shape(name))
        return None

    def numel(self) -> int:
        """Prunable weights."""
        return sum(math.prod(self.shape(name)) for name in self.prunable)

    # The way to a file and back.

    def encode(self) -> tuple[dict[str, Tensor], dict]:
        first: dict[int, str] = {}
        tied = {name: first[id(value)] for name, value in self.weights.items() if first.setdefault(id(value), name) != name}
        tensors = {f"weight/{name}": value for name, value in self.weights.items() if name not in tied}
        for name, chains in self.masks.items():
            tensors |= {f"mask/{name}/{index}": chain.planes for index, chain in enumerate(chains)}
        tensors |= {f"norm/{name}": values for name, (values, _) in self.norms.items()}
        layout = {"tied": tied, "csr": self.csr, "prunable": self.prunable,
                  "masks": {name: [{"members": chain.members, "rows": chain.rows} for chain in chains] for name, chains in self.masks.items()},
                  "norms": {name: members for name, (_, members) in self.norms.items()}}
        return tensors, {"subnets": self.subnets, "layout": layout}

    @classmethod
    def decode(cls, tensors: Mapping[str, Tensor], meta: Mapping) -> "Parts":
        """The parts of a file of this schema.

        Raises:
            BankError: naming the first thing that does not fit.
        """
        rest = dict(tensors)
        layout = _typed(meta, "layout", dict)
        tied, csr, prunable = _typed(layout, "tied", dict), _typed(layout, "csr", dict), _typed(layout, "prunable", list)
        weights = {name.removeprefix("weight/"): rest.pop(name) for name in list(rest) if name.startswith("weight/")}
        for name, other in tied.items():
            _need(isinstance(other, str) and other in weights and name not in weights and other not in tied, f"tied: {name!r} with {other!r}")
            weights[name] = weights[other]
        for name, shape in csr.items():
            check_csr(name, shape, weights)
        subnets = _typed(meta, "subnets", list)
        known = {*weights, *csr}
        masks = _masks(_typed(layout, "masks", dict), rest, weights, len(subnets))
        norms = _norms(_typed(layout, "norms", dict), rest, weights, len(subnets))
        _need(not rest, f"tensors that belong to nothing: {', '.join(sorted(rest)[:4])}")
        _need(all(isinstance(name, str) and name in known for name in prunable) and len(set(prunable)) == len(prunable),
              f"prunable: expected distinct names of weights, got {_short(prunable)}")
        parts = cls(weights, csr, prunable, masks, norms, subnets)
        parts.check_rows()
        return parts

    def check_rows(self) -> None:
        """BankError where the rows of the sub-nets are not what the masks say."""
        _need(bool(self.subnets), "subnets: there is none")
        names, numel = set(), self.numel()
        for place, row in enumerate(self.subnets):
            _need(isinstance(row, dict) and set(row) == _ROW, f"sub-net {place}: expected {', '.join(sorted(_ROW))}, got {_short(row)}")
            name = row["name"]
            _need(_is_text(name) and name not in names, f"sub-net {place}: name: {_short(name)}")
            names.add(name)
            _need(known_pattern(row["pattern"]), f"{name}: pattern: expected {', '.join(PATTERNS)} or n:m, got {_short(row['pattern'])}")
            _need(type(row["nnz"]) is int, f"{name}: nnz: expected an integer, got {_short(row['nnz'])}")
            for key in ("target", "accuracy"):
                _need(row[key] is None or is_share(row[key]), f"{name}: {key}: expected a number in [0, 1] or none, got {_short(row[key])}")
            nnz = self.nnz(place)
            _need(row["nnz"] == nnz, f"{name}: nnz: says {_short(row['nnz'])}, its masks keep {nnz}")
            _need(is_share(row["sparsity"]) and row["sparsity"] == sparsity(nnz, numel),
                  f"{name}: sparsity: says {_short(row['sparsity'])}, its masks {sparsity(nnz, numel)}")


def sparsity(nnz: int, numel: int) -> float:
    """Fraction of zeros."""
    return 1.0 - nnz / numel if numel else 0.0


def known_pattern(pattern) -> bool:
    if pattern in PATTERNS:
        return True
    try:
        return str(NM.parse(pattern)) == pattern
    except (TypeError, ValueError):
        return False


def is_share(value) -> bool:
    """A number in [0, 1]."""
    return type(value) in (int, float) and 0 <= value <= 1


def sibling(name: str, key: str) -> str:
    """"conv1.weight" -> "conv1.values"."""
    return f"{name.rpartition('.')[0]}.{key}".lstrip(".")


def csr_layers(model: nn.Module) -> dict[str, list[int]]:
    """{name of the weight: dense shape} of the sparse layers of a model."""
    found = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, SparseWeight):
            shape = [module.rows, module.cols] if isinstance(module, SparseLinear) else [
                module.out_channels, module.in_channels // module.groups, *module.kernel_size]
            found[f"{name}.weight".lstrip(".")] = shape
    return found


def signature(state: Mapping[str, Tensor], csr: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """{name: dtype and shape} of a state_dict, with the dense weight in the place of what a sparse layer holds."""
    found = {name: f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}" for name, value in state.items()}
    for name, shape in csr.items():
        kind = str(state[sibling(name, "values")].dtype).removeprefix("torch.")
        for key in ("values", "crow", "col"):
            del found[sibling(name, key)]
        found[name] = f"{kind} {list(shape)}"
    return found


def architecture(names: Mapping[str, str]) -> str:
    """SHA-256 of a signature."""
    return hashlib.sha256(json.dumps(sorted(names.items())).encode()).hexdigest()


def check_csr(name, shape, weights: Mapping[str, Tensor]) -> None:
    """BankError unless the weights hold a sound pattern for a dense weight of this name and shape."""
    _need(name.endswith("weight") and name not in weights, f"csr: {name!r} is no weight of a sparse layer")
    _need(isinstance(shape, list) and len(shape) in (2, 4) and all(type(size) is int and 1 <= size < 1 << 31 for size in shape)
          and math.prod(shape[1:]) < 1 << 31, f"csr: {name}: shape: {_short(shape)}")
    missing = [key for key in ("values", "crow", "col") if sibling(name, key) not in weights]
    _need(not missing, f"csr: {name}: {', '.join(missing)} missing")
    values, crow, col = (weights[sibling(name, key)] for key in ("values", "crow", "col"))
    _need(values.is_floating_point() and values.dim() == 1 and values.shape == col.shape,
          f"csr: {name}: expected one number per column index {list(col.shape)}, got {values.dtype} {list(values.shape)}")
    try:
        ops.check_csr(crow, col, shape[0], math.prod(shape[1:]), op=name)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BankError(f"csr: {error}") from error


def check_meta(meta: Mapping) -> None:
    """BankError for metadata of another schema, or with values of the wrong kind."""
    schema = meta.get("schema")
    _need(type(schema) is int and schema >= 1, f"schema: expected a number from 1 on, got {_short(schema)}")
    if schema > SCHEMA:
        found = meta.get("versions")
        by = found.get("sparsekern") if isinstance(found, dict) else None
        raise BankError(f"it has schema {schema}, written by sparsekern {_short(by)}; this version reads up to schema {SCHEMA}: update sparsekern")
    check_facts(meta)


def check_facts(meta: Mapping) -> None:
    """BankError where what a bank says of its origin is of the wrong kind."""
    model = meta.get("model")
    if model is not None:
        shape = model.get("shape") if isinstance(model, dict) else None
        _need(isinstance(model, dict) and set(model) == {"name", "classes", "shape"} and _is_text(model["name"])
              and type(model["classes"]) is int and 1 <= model["classes"] < 1 << 31 and isinstance(shape, list) and len(shape) == 3
              and all(type(size) is int and size >= 1 for size in shape) and math.prod(shape) <= MOST_VALUES,
              f'model: expected {{"name": a model, "classes": a number, "shape": [channels, height, width]}} with at most {MOST_VALUES} values an '
              f'image, got {_short(model)}')
    for key in ("algorithm", "data", "commit"):
        _need(meta.get(key) is None or _is_text(meta[key]), f"{key}: expected a text or none, got {_short(meta.get(key))}")
    _need(isinstance(meta.get("versions"), dict), f"versions: expected names and versions, got {_short(meta.get('versions'))}")


def _members(given, where: str, subnets: int, taken: set[int]) -> tuple[tuple[int, ...], ...]:
    """Lists of places of sub-nets, none of them taken already."""
    _need(isinstance(given, list) and bool(given), f"{where}: expected lists of sub-nets, got {_short(given)}")
    for entry in given:
        _need(isinstance(entry, list) and bool(entry) and all(type(place) is int and 0 <= place < subnets for place in entry)
              and len(set(entry)) == len(entry) and not taken & set(entry),
              f"{where}: expected sub-nets below {subnets}, each once, got {_short(entry)}")
        taken |= set(entry)
    return tuple(tuple(entry) for entry in given)


def _masks(layout: dict, rest: dict[str, Tensor], weights: Mapping[str, Tensor], subnets: int) -> dict[str, list[Chain]]:
    found: dict[str, list[Chain]] = {}
    for name, given in layout.items():
        _need(name in weights, f"masks: {name!r} is no parameter of this model")
        _need(isinstance(given, list), f"masks: {name}: expected a list, got {_short(given)}")
        taken: set[int] = set()
        found[name] = []
        for index, entry in enumerate(given):
            where = f"mask/{name}/{index}"
            _need(isinstance(entry, dict) and set(entry) == {"members", "rows"} and type(entry["rows"]) is bool, f"{where}: {_short(entry)}")
            _need(where in rest, f"{where} is missing")
            chain = Chain(rest.pop(where), _members(entry["members"], where, subnets, taken), entry["rows"])
            fault = chain.fault(weights[name].shape)
            _need(fault is None, f"{where}: {fault}")
            found[name].append(chain)
    return found


def _norms(layout: dict, rest: dict[str, Tensor], weights: Mapping[str, Tensor], subnets: int) -> dict[str, tuple[Tensor, list[list[int]]]]:
    found = {}
    for name, given in layout.items():
        where = f"norm/{name}"
        _need(name in weights, f"norms: {name!r} is no tensor of this model")
        _need(where in rest, f"{where} is missing")
        members = _members(given, where, subnets, set())
        values, wanted = rest.pop(where), [len(members), *weights[name].shape]
        _need(values.dtype == weights[name].dtype and list(values.shape) == wanted,
              f"{where}: expected {weights[name].dtype} {wanted}, got {values.dtype} {list(values.shape)}")
        found[name] = values, [list(entry) for entry in members]
    return found


def _typed(values: Mapping, key: str, kind: type):
    found = values.get(key)
    _need(isinstance(found, kind), f"{key}: expected {'names and values' if kind is dict else 'a list'}, got {_short(found)}")
    return found


def _is_text(value) -> bool:
    """Nothing that a terminal would obey, either."""
    return isinstance(value, str) and 0 < len(value) <= 2000 and value.isprintable()


def _short(value) -> str:
    """What came, in a few words."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _need(fine: bool, text: str) -> None:
    if not fine:
        raise BankError(text)
