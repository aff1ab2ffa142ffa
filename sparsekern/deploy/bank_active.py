"""A bank on a model: the shared weights in its tensors, and every sub-net's masks and norms a few pointers away."""
import weakref

import torch
from torch import Tensor, nn

from sparsekern.deploy.bank_file import BankError, Parts, csr_layers, sibling, signature
from sparsekern.nn import SparseConv2d, SparseLinear, SparseWeight
from sparsekern.sparsity.layers import Attached, Layer, refuse_attached
from sparsekern.sparsity.sparsify import exchange

_KEY = "_sparsekern_bank"               # in the model's __dict__: it lives and dies, and is copied, with the model


def active_on(model: nn.Module) -> "Active | None":
    """The bank that is on this model."""
    return vars(model).get(_KEY)


def check_model(model: nn.Module, parts: Parts) -> None:
    """BankError unless the model's state_dict has the names, shapes and dtypes of the bank's; the first difference is named."""
    state = model.state_dict()
    own = signature({name: value for name, value in state.items() if isinstance(value, Tensor)}, csr_layers(model))
    for name, kind in parts.signature.items():
        if name not in own:
            raise BankError(f"this bank is of another architecture: the model has no {name} ({kind} in the bank)")
        if own[name] != kind:
            raise BankError(f"this bank is of another architecture: {name} is {own[name]} in the model, {kind} in the bank")
    for name in [*own, *(name for name, value in state.items() if not isinstance(value, Tensor))]:
        if name not in parts.signature:
            raise BankError(f"this bank is of another architecture: it has no {name} ({own.get(name, 'no tensor')} in the model)")
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)} | set(csr_layers(model))
    for name in parts.masks:
        if name not in parameters:
            raise BankError(f"this bank masks {name}, which is no parameter of the model")
    active = active_on(model)
    becomes_dense = active is not None and active.was_dense             # before another bank takes its place
    sparse = {} if becomes_dense else csr_layers(model)
    if sparse and sparse != parts.csr:
        raise BankError(f"this bank stores {', '.join(parts.csr) or 'no layer'} as nonzeros, the model {', '.join(sparse)}")
    for name in parts.csr if not sparse else ():
        module = model.get_submodule(name.rpartition(".")[0])
        if module is model or type(module) not in (nn.Linear, nn.Conv2d, SparseLinear, SparseConv2d):
            raise BankError(f"{name}: this bank stores it as nonzeros, and the model's {type(module).__name__} cannot be exchanged; put the "
                            f"model into another module, or give it plain layers")


@torch.no_grad()
def load_shared(model: nn.Module, parts: Parts) -> None:
    """Copy the shared weights into a model that was checked; where the bank has nonzeros only, sparse layers take the place of dense ones."""
    new: dict[nn.Module, nn.Module] = {}
    for name in parts.csr:
        module = model.get_submodule(name.rpartition(".")[0])
        if not isinstance(module, SparseWeight) and module not in new:
            pattern = [parts.weights[sibling(name, key)].to(module.weight.device, copy=True) for key in ("crow", "col", "values")]
            new[module] = _sparse(module, *pattern)
    exchange(model, new)
    model.load_state_dict(parts.weights)


@torch.no_grad()
def make_dense(model: nn.Module) -> None:
    """Dense layers in the place of sparse ones, in place and with the model's own biases; zeros where they have no connection."""
    new = {module: module.to_dense() for module in list(model.modules()) if isinstance(module, SparseWeight)}
    for module, made in new.items():
        made.bias = module.bias
        made.weight.requires_grad_(module.values.requires_grad)
    exchange(model, new)


class Active:
    """The sub-nets of a bank on one model; `show` only moves pointers.

    Masks of row-major weights of two and more dimensions stay packed, one bit a weight; of other memory orders and of vectors they are bool.
    Equal masks are one tensor.
    """

    @torch.inference_mode(False)                            # what is made here may take part in a backward pass later
    @torch.no_grad()
    def __init__(self, bank, model: nn.Module, parts: Parts):
        self.bank = weakref.ref(bank)
        self.was_dense = not csr_layers(model)
        load_shared(model, parts)
        named = dict(model.named_parameters(remove_duplicate=False))
        self.layers = [_layer(model, name, named[name]) for name in parts.masks]
        self.masks: list[list[Tensor | None]] = [[None] * len(self.layers) for _ in parts.subnets]
        for index, layer in enumerate(self.layers):
            for chain in parts.masks[layer.name]:
                for position, members in enumerate(chain.members):
                    mask = _mask(chain, position, layer.param)
                    for place in members:
                        self.masks[place][index] = mask
        self.own = []                                       # what the model has where a sub-net's norms go
        places = {}
        for name in parts.norms:
            prefix, _, key = name.rpartition(".")
            module = model.get_submodule(prefix)
            table = module._parameters if key in module._parameters else module._buffers
            places[name] = table, key
            self.own.append((table, key, table[key]))
        self.norms = [list(self.own) for _ in parts.subnets]
        for index, (name, (values, members)) in enumerate(parts.norms.items()):
            table, key = places[name]
            for value, subnets in zip(values, members):
                twin = _twin(table[key], value)
                for place in subnets:
                    self.norms[place][index] = table, key, twin
        self.attached = Attached(model, self.layers)
        model.__dict__[_KEY] = self

    def show(self, place: int) -> None:
        masks = self.masks[place]
        self.attached.show(masks, masks, False)
        for table, key, tensor in self.norms[place]:
            table[key] = tensor

    def remove(self, model: nn.Module) -> None:
        """The plain model: masks gone, its own norms back, dense layers where they were."""
        self.attached.remove()
        for table, key, tensor in self.own:
            table[key] = tensor
        if self.was_dense:
            make_dense(model)
        del model.__dict__[_KEY]

    def nbytes(self) -> int:
        """Bytes that masks and norms hold beside the model."""
        held = {id(mask): mask for masks in self.masks for mask in masks if mask is not None}
        held |= {id(tensor): tensor for norms in self.norms for *_, tensor in norms}
        own = {id(tensor) for *_, tensor in self.own}
        return sum(tensor.nbytes for key, tensor in held.items() if key not in own)


def refuse_taken(model: nn.Module) -> None:
    """ValueError where a sparsifier is on the model; a bank may be."""
    if active_on(model) is None:
        refuse_attached(model)


def _layer(model: nn.Module, name: str, param: nn.Parameter) -> Layer:
    key = name.rpartition(".")[2]
    return Layer(name, param, [module for module in model.modules() if module._parameters.get(key) is param], key=key)


def _mask(chain, position: int, param: Tensor) -> Tensor:
    if param.dim() > 1 and param.is_contiguous():
        return chain.packed(position, param.shape).to(param.device)
    return torch.empty_like(param, dtype=torch.bool, requires_grad=False).copy_(chain.mask(position, param.shape))


def _twin(own: Tensor, value: Tensor) -> Tensor:
    tensor = torch.empty_like(own, requires_grad=False).copy_(value)
    return nn.Parameter(tensor, requires_grad=own.requires_grad) if isinstance(own, nn.Parameter) else tensor


def _sparse(module: nn.Linear | nn.Conv2d, crow: Tensor, col: Tensor, values: Tensor) -> SparseWeight:
    if isinstance(module, nn.Linear):
        made = SparseLinear(module.in_features, module.out_features, crow, col, values)
    else:
        made = SparseConv2d(module.in_channels, module.out_channels, module.kernel_size, crow, col, values, stride=module.stride,
                            padding=module.padding, dilation=module.dilation, groups=module.groups, padding_mode=module.padding_mode)
    made.bias = module.bias
    made.values.requires_grad_(module.weight.requires_grad)
    return made.train(module.training)
