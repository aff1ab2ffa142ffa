"""Which output channels of a model can only be removed together: an own walk over the torch.fx graph, and torch-pruning's."""
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

BACKENDS = ("own", "torch-pruning")

# These map zeros to zeros, channel by channel, so that a masked channel stays one of zeros behind them.
_KEEP_ZERO = {"relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "elu", "selu", "celu", "gelu", "silu", "hardswish", "mish", "tanh", "dropout",
              "dropout2d", "contiguous", "clone", "to", "float", "neg", "abs", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d",
              "interpolate"}
_KEEP_ZERO_MODULES = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Mish, nn.Tanh, nn.Dropout,
                      nn.Dropout2d, nn.Identity, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.ZeroPad2d,
                      nn.Upsample)
_MOVE_ZERO = {"sigmoid", "sigmoid_", "hardsigmoid", "softplus", "exp", "softmax", "log_softmax", "hardtanh", "hardtanh_"}
_MOVE_ZERO_MODULES = (nn.Sigmoid, nn.Hardsigmoid, nn.Softplus, nn.Softmax, nn.LogSoftmax, nn.Hardtanh, nn.PReLU)
_SUMS = {"add", "add_", "iadd", "sub", "sub_"}
_PRODUCTS = {"mul", "mul_", "imul", "truediv", "div"}
_RESHAPES = {"flatten", "view", "reshape", "squeeze", "unsqueeze"}


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that stand or fall together: where residual branches are added, every branch has them."""
    name: str                                   # of its first producer, e.g. "layer1.0.conv1"
    channels: int
    producers: tuple[str, ...]                  # modules whose output channels these are; depthwise convolutions too
    norms: tuple[str, ...]                      # batch norms over exactly these channels
    consumers: tuple[tuple[str, int], ...]      # (module, input columns per channel), e.g. 49 for a Linear behind a flattened 7x7
    fixed: str = ""                             # why it must stay whole; empty: its channels may be removed


def find_channel_groups(model: nn.Module, example: Tensor, *, keep_first: bool = False, backend: str = "own") -> list[ChannelGroup]:
    """The groups of coupled output channels of a model's convolutions and linear layers, in the order of the forward pass.

    Followed are convolutions (depthwise ones share the group of the layer that feeds them), linear layers, batch norms, activations, pooling,
    flattening, sums and products of branches. Groups that reach the model's output stay whole, and so do those on both sides of
    a shortcut that pads channels with zeros, those behind which a function moves zeros (a masked channel would not be one of zeros), and
    those flattened to a width that is written in the code.

    Args:
        model: any module; it is traced and run once in eval mode, and left as it was.
        example: one input batch on the model's device.
        keep_first: leave the group of the first convolution whole.
        backend: "own", or "torch-pruning" for models that the own walk refuses (optional dependency; a group is whole there unless
            every member has all its channels in order).
    Raises:
        ValueError: an unknown backend, or one that is not installed; a model that cannot be traced or followed, naming the module or
            operation.
    """
    if backend not in BACKENDS:
        raise ValueError(f"find_channel_groups: backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        if backend == "torch-pruning":
            from sparsekern.sparsity.channel_groups_tp import torch_pruning_groups
            return torch_pruning_groups(model, example, keep_first)
        with torch.no_grad():
            return _Walk(model, example).groups(keep_first)
    finally:
        for module, mode in modes:
            module.training = mode


def norms_after(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """{convolution or linear layer: the batch norms that read its output alone}; ValueError where the model cannot be traced."""
    modules = dict(model.named_modules())
    sources: dict[str, set[str | None]] = {}
    for node in _traced(model).nodes:
        if node.op == "call_module" and isinstance(modules[node.target], _BatchNorm):
            before = node.args[0] if node.args else None
            layer = isinstance(before, fx.Node) and before.op == "call_module" and isinstance(modules[before.target], (nn.Conv2d, nn.Linear))
            sources.setdefault(node.target, set()).add(before.target if layer else None)
    found: dict[str, tuple[str, ...]] = {}
    for norm, layers in sources.items():
        if len(layers) == 1 and (layer := next(iter(layers))) is not None:
            found[layer] = (*found.get(layer, ()), norm)
    return found


def _traced(model: nn.Module) -> fx.Graph:
    try:
        return fx.symbolic_trace(model).graph
    except Exception as error:                                      # whatever the model's own code raises on a tracer's stand-ins
        raise _refusal("the forward pass", f"torch.fx cannot trace it ({str(error).splitlines()[0]})") from error


class _Channels:
    """A set of channels while the graph is walked; sets that meet are joined."""

    def __init__(self, count: int, fixed: str = ""):
        self.count, self.fixed = count, fixed
        self.producers: list[str] = []
        self.norms: list[str] = []
        self.consumers: list[tuple[str, int]] = []
        self.joined: _Channels | None = None

    def root(self) -> "_Channels":
        return self if self.joined is None else self.joined.root()

    def fix(self, reason: str) -> None:
        root = self.root()
        root.fixed = root.fixed or reason

    def join(self, other: "_Channels") -> None:
        one, two = self.root(), other.root()
        if one is not two:
            two.joined = one
            one.fixed = one.fixed or two.fixed
            one.producers += two.producers
            one.norms += two.norms
            one.consumers += two.consumers


class _Walk:
    """One pass over the graph. `known[node]` is (channels, columns): dimension 1 holds each channel as so many neighbouring columns."""

    def __init__(self, model: nn.Module, example: Tensor):
        self.modules = dict(model.named_modules())
        self.known: dict[fx.Node, tuple[_Channels, int]] = {}
        self.seen: dict[str, tuple[_Channels, _Channels]] = {}      # module -> the channels it takes and gives
        self.owner: dict[int, str] = {}                             # weight -> the module it was met in
        graph = _traced(model)
        ShapeProp(graph.owning_module).propagate(example)
        for node in graph.nodes:
            getattr(self, node.op)(node)

    def groups(self, keep_first: bool) -> list[ChannelGroup]:
        if keep_first:
            for name, (_, out) in self.seen.items():
                if isinstance(self.modules[name], nn.Conv2d):
                    out.fix("first convolution")
                    break
        order = list(self.seen)
        roots = {id(root): root for _, out in self.seen.values() for root in [out.root()] if root.producers}
        found = []
        for root in roots.values():
            producers, norms = (tuple(sorted(dict.fromkeys(names), key=order.index)) for names in (root.producers, root.norms))
            consumers = tuple(sorted(dict.fromkeys(root.consumers), key=lambda item: order.index(item[0])))
            found.append(ChannelGroup(producers[0], root.count, producers, norms, consumers, root.fixed))
        return sorted(found, key=lambda group: order.index(group.name))

    # One method per kind of node.

    def placeholder(self, node: fx.Node) -> None:
        shape = _shape(node)
        if shape is not None and len(shape) > 1:
            self.known[node] = _Channels(shape[1], "model input"), 1

    def get_attr(self, node: fx.Node) -> None:
        pass

    def output(self, node: fx.Node) -> None:
        for value in node.all_input_nodes:
            if value in self.known:
                self.known[value][0].fix("model output")

    def call_module(self, node: fx.Node) -> None:
        module, name = self.modules[node.target], node.target
        value = self.known.get(node.args[0]) if node.args else None
        if value is None:
            if any(item in self.known for item in node.all_input_nodes):
                raise _refusal(name, f"{type(module).__name__} is called in a way that is not followed")
            return
        channels, per = value
        if isinstance(module, (nn.Conv2d, nn.Linear, _BatchNorm)):
            self._layer(node, name, module, channels, per)
        elif isinstance(module, _KEEP_ZERO_MODULES):
            self.known[node] = value
        elif isinstance(module, nn.Flatten):
            self._reshape(node, value, name)
        elif isinstance(module, _MOVE_ZERO_MODULES):
            self._moves_zero(node, value, f"{type(module).__name__} {name}")
        else:
            raise _refusal(name, f"{type(module).__name__} is not followed")

    def _layer(self, node, name, module, channels, per) -> None:
        shape = _shape(node.args[0])
        if isinstance(module, nn.Linear) and len(shape) != 2:
            raise _refusal(name, f"a Linear over the last of {len(shape)} dimensions mixes no channels of dimension 1")
        if "weight" not in module._parameters:
            raise _refusal(name, "its weight is computed from other parameters")
        depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels > 1
        if isinstance(module, nn.Conv2d) and module.groups > 1 and not depthwise:
            raise _refusal(name, f"a grouped convolution (groups={module.groups}, {module.in_channels} to {module.out_channels} channels) keeps "
                                 f"blocks of channels together")
        if per != 1 and not isinstance(module, nn.Linear):
            raise _refusal(name, f"{type(module).__name__} works on channels that were flattened into {per} columns each")
        weight = module.weight
        if weight is not None and self.owner.setdefault(id(weight), name) != name:
            raise _refusal(name, f"its weight is that of {self.owner[id(weight)]}, too")
        through = depthwise or isinstance(module, _BatchNorm)
        out = channels if through else _Channels(module.out_features if isinstance(module, nn.Linear) else module.out_channels)
        if name in self.seen:                                       # used in two places: both must agree
            channels.join(self.seen[name][0])
            out.join(self.seen[name][1])
        self.seen[name] = channels, out
        if isinstance(module, _BatchNorm):
            channels.root().norms.append(name)
            if not module.affine:
                channels.fix(f"batch norm {name} has no scale and shift to mask")
        else:
            out.root().producers.append(name)
            if not through:
                channels.root().consumers.append((name, per))
        self.known[node] = out, per if through else 1

    def call_method(self, node: fx.Node) -> None:
        self._call(node, node.target)

    def call_function(self, node: fx.Node) -> None:
        self._call(node, getattr(node.target, "__name__", str(node.target)))

    def _call(self, node: fx.Node, kind: str) -> None:
        inputs = [self.known[item] for item in node.all_input_nodes if item in self.known]
        if not inputs or (node.meta.get("tensor_meta") is None and kind in ("size", "getattr", "dim", "getitem")):
            return                                                  # numbers: sizes and what is computed from them
        where = _where(node, kind)
        value = self.known.get(node.args[0]) if node.args else None
        if kind in _SUMS or kind in _PRODUCTS:
            self._pair(node, kind, where)
        elif value is None or len(inputs) > 1 or _shape(node) is None:
            raise _refusal(where, "it joins or splits channels" if kind in ("cat", "concat", "stack", "chunk", "split") else "it is not followed")
        elif kind in _KEEP_ZERO:
            self.known[node] = value
        elif kind in _MOVE_ZERO:
            self._moves_zero(node, value, where)
        elif kind in _RESHAPES:
            self._reshape(node, value, where)
        elif kind in ("mean", "sum", "amax"):
            self._reduce(node, value, where)
        elif kind == "getitem":
            self._getitem(node, value, where)
        elif kind == "pad":
            self._pad(node, value, where)
        else:
            raise _refusal(where, "it is not followed")

    def _moves_zero(self, node, value, what) -> None:
        value[0].fix(f"{what} moves zeros")
        self.known[node] = value

    def _pair(self, node, kind, where) -> None:
        """A sum or product of two branches, or of a branch and a number."""
        operands = [*node.args, *(value for key, value in node.kwargs.items() if key in ("input", "other"))]
        values = [(self.known[item], _shape(item)) for item in operands if isinstance(item, fx.Node) and item in self.known]
        if len(values) == 2:
            ((one, per), shape), ((two, other), second) = values
            if per != other or len(shape) != len(second) or shape[1] != second[1]:
                raise _refusal(where, f"shapes {list(shape)} and {list(second)} spread channels over each other")
            one.join(two)
        elif any(isinstance(item, fx.Node) and item not in self.known and _shape(item) not in (None, ()) for item in operands):
            raise _refusal(where, "a tensor that is no layer's output takes part in it")
        divides = kind in ("truediv", "div") and isinstance(operands[1], fx.Node) and operands[1] in self.known
        if divides or len(values) == 1 and kind in _SUMS and any(isinstance(item, fx.Node) or item != 0 for item in operands
                                                                 if item not in self.known):
            values[0][0][0].fix(f"{where} moves zeros")
        if any(isinstance(item, fx.Node) and item not in self.known for item in operands):
            values[0][0][0].fix(f"{where} takes a size, which may change with the channels")
        self.known[node] = values[0][0]

    def _reshape(self, node, value, where) -> None:
        before, after = _shape(node.args[0]), _shape(node)
        if len(after) < 2 or after[0] != before[0] or after[1] % before[1]:
            raise _refusal(where, f"from {list(before)} to {list(after)} it mixes channels")
        if node.target in ("view", "reshape", torch.reshape):
            sizes = tree_leaves(node.args[1:])
            if len(sizes) > 1 and isinstance(sizes[1], int) and sizes[1] != -1:
                value[0].fix(f"{where} asks for {sizes[1]} columns")
        self.known[node] = value[0], value[1] * (after[1] // before[1])

    def _reduce(self, node, value, where) -> None:
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis"))
        rank = len(_shape(node.args[0]))
        if dims is None or any(dim % rank < 2 for dim in tree_leaves(dims)):
            raise _refusal(where, "it reduces over samples or channels")
        self.known[node] = value

    def _getitem(self, node, value, where) -> None:
        index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        if any(item is None or item is Ellipsis for item in index) or any(item != slice(None) for item in index[:2]):
            raise _refusal(where, "it takes some of the samples or channels")
        self.known[node] = value

    def _pad(self, node, value, where) -> None:
        sizes = node.args[1] if len(node.args) > 1 else node.kwargs["pad"]
        number = node.args[3] if len(node.args) > 3 else node.kwargs.get("value")
        if number:
            value[0].fix(f"{where} moves zeros")
        before, after = _shape(node.args[0]), _shape(node)
        if before[0] != after[0] or not all(isinstance(size, int) for size in sizes):
            raise _refusal(where, "it is not followed")
        if before[1] != after[1]:
            # the code says where the channels go, and would go on saying so in a narrower model
            reason = f"{where} adds channels of zeros"
            value[0].fix(reason)
            value = _Channels(after[1], reason), value[1]
        self.known[node] = value


def _shape(node: fx.Node) -> torch.Size | None:
    """Of a node's tensor; None for numbers and for several tensors."""
    return getattr(node.meta.get("tensor_meta"), "shape", None)


def _where(node: fx.Node, kind: str) -> str:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    inside = stack[-1][0] if stack else ""
    return f"{kind} in {inside}" if inside else f"{kind} in the model's forward"


def _refusal(where: str, why: str) -> ValueError:
    return ValueError(f"find_channel_groups: {where}: {why}; try backend=\"torch-pruning\" (pip install torch-pruning)")
