"""Where the one net of a training that is sparse from the start lives.

`MaskedStore`: in the model's dense weights, under a mask: what hides is zero and has no momentum. `CsrStore`: in sparse layers that take
the place of the dense ones; then nothing of a dense weight's size is made after the first step. Both draw the same net from a seed and
move the same connections when told to.
"""
import copy
import dataclasses
import math
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsekern import ops
from sparsekern.nn import SparseConv2d, SparseLinear, SparseWeight
from sparsekern.nn.choose import choose_backend
from sparsekern.nn.sparse_init import initial_bias, initial_values, random_pattern
from sparsekern.sparsity.layers import Layer
from sparsekern.sparsity.masks import MaskSet
from sparsekern.sparsity.optim_state import shaped_state
from sparsekern.sparsity.sparsify import exchange, exchangeable

_LARGEST = 1 << 26                      # elements of a weight up to which the dense product is tried, too


@dataclass
class Move:
    """What happens to one layer: `drop` [nnz] bool in CSR order; `take` [S] bool of the candidates at int32 `rows`, `cols` (sorted)
    with their `grads`."""
    drop: Tensor
    rows: Tensor
    cols: Tensor
    take: Tensor
    grads: Tensor


def draw(layer: Layer, nnz: int, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """crow, col, values and biases [rows] of a fresh layer; those of `SparseLinear.from_shape` with this seed."""
    rows, cols = matrix(layer.shape)
    generator = torch.Generator().manual_seed(seed)
    crow, col = random_pattern(rows, cols, nnz, generator)
    drawn = crow, col, initial_values(crow, nnz, generator, dtype), initial_bias(crow, generator, dtype)
    device = layer.param.device
    return tuple(tensor.to(device) for tensor in drawn)


def matrix(shape: Sequence[int]) -> tuple[int, int]:
    """(rows, cols) of a weight as the matrix from inputs to outputs."""
    return shape[0], math.prod(shape[1:])


def flat_places(crow: Tensor, col: Tensor, cols: int) -> Tensor:
    """int64 [nnz] row * cols + col, ascending."""
    rows = torch.arange(crow.numel() - 1, device=crow.device)
    return torch.repeat_interleave(rows * cols, crow.diff(), output_size=col.numel()) + col


class MaskedStore:
    """Dense weights under a mask."""
    dense = True

    def __init__(self, sparsifier):
        self.s = sparsifier

    def start(self, counts: list[int], seeds: list[int], init: str) -> None:
        masks = []
        for layer, count, seed in zip(self.s.layers, counts, seeds):
            weight, cols = layer.param, matrix(layer.shape)[1]
            crow, col, values, biases = draw(layer, count, seed, weight.dtype)
            places = flat_places(crow, col, cols)
            mask = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
            mask[places] = True
            masks.append(mask.view(layer.shape))
            if init == "fan_in":
                weight.copy_(torch.zeros(weight.numel(), dtype=weight.dtype, device=weight.device).index_copy_(0, places, values).view(layer.shape))
                for module in layer.modules:
                    if module.bias is not None:
                        module.bias.copy_(biases)
            else:
                weight.masked_fill_(~masks[-1], 0)
        self.s.masks.write(self.s.net, masks, counts)

    def pattern(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """crow, col and values of a layer."""
        mask, weight = self.s.masks[self.s.net][index], self.s.weights[index]
        return ops.csr_from_mask(mask.flatten(1), weight.detach().flatten(1))

    def move(self, moves: Sequence[Move | None]) -> list[int]:
        """Make the moves; how many connections changed in each layer."""
        masks, counts, flips = [mask.clone() for mask in self.s.masks[self.s.net]], self.s.masks.counts(self.s.net), []
        for index, move in enumerate(moves):
            if move is None:
                flips.append(0)
                continue
            weight, cols = self.s.weights[index], matrix(self.s.layers[index].shape)[1]
            crow, col, _ = self.pattern(index)
            gone = flat_places(crow, col, cols)[move.drop]
            come = (move.rows.long() * cols + move.cols)[move.take]
            moved = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
            moved[gone] = moved[come] = True
            moved = moved.view(weight.shape)
            masks[index] ^= moved
            for tensor in [weight.detach(), *shaped_state(self.s.optimizer, weight).values()]:
                tensor.masked_fill_(moved, 0)
            counts[index] += len(come) - len(gone)
            flips.append(len(come) + len(gone))
        self.s.masks.write(self.s.net, masks, counts)
        return flips

    def choose(self, backend: str) -> None:
        pass

    def extra_state(self) -> dict:
        return {}

    def load_extra_state(self, values: dict) -> None:
        pass


class CsrStore:
    """Sparse layers in the place of dense ones; sparse layers that the model has already are taken as they are.

    The optimizer gets a layer's `values` where it had its weight, in the same group; its state goes along with the connections.
    """
    dense = False

    def __init__(self, sparsifier):
        self.s = sparsifier
        self.products: list[dict] = []                              # what was measured of each layer's two products
        self._waiting: list = []                                    # hooks of layers not measured yet

    def start(self, counts: list[int], seeds: list[int], init: str) -> None:
        new: dict[nn.Module, SparseWeight] = {}
        for layer, count, seed in zip(self.s.layers, counts, seeds):
            module, old = layer.modules[0], layer.param
            if isinstance(module, SparseWeight):
                continue
            crow, col, values, biases = draw(layer, count, seed, old.dtype)
            places = flat_places(crow, col, matrix(layer.shape)[1])
            bias = module.bias
            if init == "keep":
                values = old.detach().reshape(-1)[places]
            elif bias is not None:
                bias.copy_(biases)
            new[module] = layer.modules[0] = made = _twin(module, crow, col, values)
            made.bias = bias                                        # the very parameter that the optimizer has
            layer.dense_shape, layer.param = old.shape, made.values
            made.values.requires_grad_(old.requires_grad)
            exchange_parameter(self.s.optimizer, old, made.values, lambda state, places=places: state.reshape(-1)[places])
        exchange(self.s.model, new)

    def pattern(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        module = self.s.layers[index].modules[0]
        return module.crow, module.col, module.values.detach()

    def move(self, moves: Sequence[Move | None]) -> list[int]:
        flips = []
        for layer, move in zip(self.s.layers, moves):
            if move is None:
                flips.append(0)
                continue
            module, values = layer.modules[0], layer.param
            state = shaped_state(self.s.optimizer, values)
            carried = [values.detach(), values.grad, *state.values()]
            grown = [move.grads if array is values.grad else torch.zeros_like(move.grads, dtype=array.dtype) for array in carried]
            gone, come = (int(chosen.sum()) for chosen in (move.drop, move.take))
            crow, col, arrays = ops.csr_replace(module.crow, module.col, carried, move.drop, move.rows, move.cols, move.take, inserted=grown,
                                                nnz=values.numel() + come - gone)
            module.replace_topology(crow, col, arrays[0])
            values.grad = arrays[1]
            self.s.optimizer.state[values].update(zip(state, arrays[2:]))
            flips.append(gone + come)
        self.s.masks.version += 1
        return flips

    def choose(self, backend: str) -> None:
        """The product of every layer; "auto" waits for the first batch and takes what is quicker for it."""
        for layer in self.s.layers:
            module = layer.modules[0]
            if backend != "auto":
                module.backend = backend
            else:
                self._waiting.append(module.register_forward_pre_hook(
                    lambda module, args, name=layer.name: self._measure(name, module, args[0]) if module.training else None))

    def _measure(self, name: str, module: SparseWeight, x: Tensor) -> None:
        self._waiting.pop(next(index for index, hook in enumerate(self._waiting) if hook.id in module._forward_pre_hooks)).remove()
        if module.rows * module.cols > _LARGEST:
            found = {"backend": "csr", "reason": "too large to try the dense product"}
        else:
            bare = copy.copy(module)                                # without hooks, which are not to see this
            bare._forward_hooks, bare._forward_pre_hooks = OrderedDict(), OrderedDict()
            found = dataclasses.asdict(choose_backend(bare, tuple(x.shape), x.dtype))
        module.backend = found["backend"]
        self.products.append({"layer": name} | found)

    def extra_state(self) -> dict:
        return {"backends": [layer.modules[0].backend for layer in self.s.layers], "products": self.products}

    def load_extra_state(self, values: dict) -> None:
        self.products = list(values["products"])
        for layer, backend in zip(self.s.layers, values["backends"]):
            layer.modules[0].backend = backend
        if self.products:
            self.stop_waiting()

    def stop_waiting(self) -> None:
        for hook in self._waiting:
            hook.remove()
        self._waiting.clear()

    def remove(self) -> None:
        """Dense layers in the place of the sparse ones, zeros where there are no connections."""
        new = {}
        for layer in self.s.layers:
            module = layer.modules[0]
            new[module] = layer.modules[0] = made = module.to_dense()
            made.bias = module.bias
            made.weight.requires_grad_(module.values.requires_grad)
            places = module._places()

            def spread(state, places=places, made=made):
                return state.new_zeros(made.weight.numel()).index_copy_(0, places, state).view(made.weight.shape)
            exchange_parameter(self.s.optimizer, module.values, made.weight, spread)
            layer.param, layer.dense_shape = made.weight, None
        exchange(self.s.model, new)


class PatternSet:
    """What a MaskSet says of a net, for one that lives in sparse layers: names and counts, read from the layers."""

    def __init__(self, layers: list[Layer]):
        self._layers = layers
        self.layers = tuple(layer.name for layer in layers)
        self.numels = [math.prod(layer.shape) for layer in layers]
        self.numel = sum(self.numels)
        self.counted = [True] * len(self.numels)
        self.version = 0
        self.names: tuple[str, ...] = ()

    def add(self, name: str) -> None:
        self.names += (name,)

    def active(self, name: str) -> list[None]:
        """Nothing is masked."""
        return [None] * len(self.layers)

    def counts(self, name: str) -> list[int]:
        if name not in self.names:
            raise ValueError(f"unknown sub-net {name!r}; there are {', '.join(self.names) or 'none'}")
        return [layer.param.numel() for layer in self._layers]

    nnz, sparsity, _sum = MaskSet.nnz, MaskSet.sparsity, MaskSet._sum
    effective_sparsity, densities = MaskSet.effective_sparsity, MaskSet.densities

    def set(self, name: str, masks) -> None:
        raise ValueError("set_masks: this net lives in sparse layers and has no masks; use replace_topology() of a layer")

    def packed(self) -> dict[str, Tensor]:
        return {}                                                   # the model's state_dict has the topology

    def unpacked(self, tensors) -> tuple[dict, dict]:
        return {}, {}

    def restore(self, masks, counts) -> None:
        self.version += 1


def layers_to_store(model: nn.Module, **options) -> list[Layer]:
    """The layers for a CsrStore in module order: dense ones that can be exchanged, and those that are sparse already.

    Weights that cannot be exchanged (tied ones, those read outside their own forward) are left dense and named in one warning.
    """
    found, left = exchangeable(model, **options)
    if left:
        warnings.warn("left dense: " + "; ".join(f"{name}: {why}" for name, why in left.items()), stacklevel=3)
    layers = {module: Layer(name, module.weight, [module]) for name, module in found.items()}
    for name, module in model.named_modules():
        if isinstance(module, SparseWeight):
            shape = (module.rows, module.cols) if isinstance(module, SparseLinear) else (
                module.out_channels, module.in_channels // module.groups, *module.kernel_size)
            layers[module] = Layer(f"{name}.weight" if name else "weight", module.values, [module], torch.Size(shape))
    return [layers[module] for module in model.modules() if module in layers]


def exchange_parameter(optimizer: torch.optim.Optimizer, old: Tensor, new: Tensor, carry) -> None:
    """Let `new` take the place of `old` in its param group; state with one entry per weight goes through `carry`."""
    state = optimizer.state.pop(old, None)
    for group in optimizer.param_groups:
        group["params"] = [new if param is old else param for param in group["params"]]
    if state is not None:
        optimizer.state[new] = {key: carry(value) if isinstance(value, Tensor) and value.shape == old.shape else value
                                for key, value in state.items()}


def _twin(module: nn.Module, crow: Tensor, col: Tensor, values: Tensor) -> SparseWeight:
    """The sparse layer of a dense one's geometry, without its bias."""
    if isinstance(module, nn.Linear):
        return SparseLinear(module.in_features, module.out_features, crow, col, values).train(module.training)
    return SparseConv2d(module.in_channels, module.out_channels, module.kernel_size, crow, col, values, stride=module.stride,
                        padding=module.padding, dilation=module.dilation, groups=module.groups,
                        padding_mode=module.padding_mode).train(module.training)


STORES = {"masked": MaskedStore, "csr": CsrStore}
