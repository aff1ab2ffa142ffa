"""Which weights can be masked, and how a module sees its weight through a mask. No parameter is replaced, no key changes."""
import re
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from sparsekern import ops

_MASKED = (nn.Linear, nn.Conv2d)


@dataclass
class Layer:
    """One prunable weight and the modules that use it (several when it is tied)."""
    name: str
    param: nn.Parameter
    modules: list[nn.Module]
    dense_shape: torch.Size | None = None           # where the parameter holds nonzeros only
    key: str = "weight"                             # what the modules call it
    counted: bool = True                            # False: it follows the channels of a weight, and no sparsity counts it

    @property
    def shape(self) -> torch.Size:
        """Of the dense weight."""
        return self.param.shape if self.dense_shape is None else self.dense_shape


def find_layers(model: nn.Module, *, skip_first: bool = True, skip_last: bool = False, skip_depthwise: bool = False,
                only: str | None = None, exclude: str | None = None) -> list[Layer]:
    """The weights of nn.Linear and nn.Conv2d modules that may be pruned, in registration order.

    Args:
        model: any module.
        skip_first: leave the first convolution dense (a model without convolutions has no such layer).
        skip_last: leave the last linear layer dense.
        skip_depthwise: leave depthwise convolutions dense.
        only, exclude: regular expressions searched in the weight's name, as `state_dict` spells it.
    Weights that are read outside their module's forward (the output projection of nn.MultiheadAttention, weights tied with an
    embedding, parametrized ones) are left dense and named in one warning.
    """
    layers, unseen = survey_layers(model, skip_first=skip_first, skip_last=skip_last, skip_depthwise=skip_depthwise, only=only, exclude=exclude)
    if unseen:
        warnings.warn(f"left dense, as these weights are read outside their own forward: {', '.join(unseen)}", stacklevel=2)
    return layers


def survey_layers(model: nn.Module, *, skip_first: bool, skip_last: bool, skip_depthwise: bool, only: str | None,
                  exclude: str | None) -> tuple[list[Layer], list[str]]:
    """The layers of `find_layers`, and the names of the weights that it leaves dense because they are read elsewhere, too."""
    named = list(model.named_modules())
    convolutions = [module for _, module in named if isinstance(module, nn.Conv2d)]
    linears = [module for _, module in named if isinstance(module, nn.Linear)]
    skipped = set(convolutions[:1] if skip_first else []) | set(linears[-1:] if skip_last else [])
    elsewhere = {id(param) for _, module in named if not isinstance(module, _MASKED) for param in module._parameters.values()}
    layers: dict[int, Layer] = {}
    unseen = []
    for name, module in named:
        label = f"{name}.weight" if name else "weight"
        if not isinstance(module, _MASKED) or module in skipped or not re.search(only or "", label):
            continue
        if exclude is not None and re.search(exclude, label):
            continue
        if skip_depthwise and isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            continue
        param = module._parameters.get("weight")
        if param is None or id(param) in elsewhere or isinstance(module, NonDynamicallyQuantizableLinear):
            unseen.append(label)
        elif id(param) in layers:
            layers[id(param)].modules.append(module)
        else:
            layers[id(param)] = Layer(label, param, [module])
    refuse_attached(model)
    return list(layers.values()), unseen


def refuse_attached(model: nn.Module) -> None:
    """ValueError where masks are in place on the model."""
    if any(isinstance(getattr(module.forward, "__self__", None), MaskedForward) for module in model.modules()):
        raise ValueError("this model has a sparsifier already; call its remove() first")


class MaskedForward:
    """The forward of one module, with its weight (or what `key` names) seen through a mask.

    A batch norm under a mask keeps the running statistics of hidden channels. Several of them on a module are removed last first.
    """

    def __init__(self, module: nn.Module, key: str = "weight"):
        self.module, self.key = module, key
        self.mask: Tensor | None = None             # None: dense
        self.grad_mask: Tensor | None = None        # None: like mask
        self.dense_grad = False
        self.replaced = vars(module).get("forward")
        self.inner = module.forward
        kind = type(module)
        if isinstance(module, _BatchNorm) and key == "weight":
            module.forward = self._norm
        elif key != "weight":
            module.forward = self._shadowed
        elif self.replaced is None and kind.forward is nn.Linear.forward:
            module.forward = self._linear
        elif self.replaced is None and kind.forward is nn.Conv2d.forward and kind._conv_forward is nn.Conv2d._conv_forward:
            module.forward = self._conv2d
        else:
            module.forward = self._shadowed

    def remove(self) -> None:
        del self.module.forward
        if self.replaced is not None:
            self.module.forward = self.replaced

    def effective(self, dtype: torch.dtype | None = None) -> Tensor:
        weight = self.module._parameters[self.key]
        if self.mask is None and self.grad_mask is None:
            return weight
        return ops.masked_weight(weight, self.mask, grad_mask=self.grad_mask, dense_grad=self.dense_grad, dtype=dtype)

    def _linear(self, input: Tensor) -> Tensor:
        return F.linear(input, self.effective(_autocast(input)), self.module.bias)

    def _conv2d(self, input: Tensor) -> Tensor:
        return self.module._conv_forward(input, self.effective(_autocast(input)), self.module.bias)

    def _shadowed(self, *args, **kwargs):
        # an instance attribute hides the parameter of the same name while a forward of unknown making runs
        self.module.__dict__[self.key] = self.effective()
        try:
            return self.inner(*args, **kwargs)
        finally:
            del self.module.__dict__[self.key]

    def _norm(self, input: Tensor) -> Tensor:
        norm = self.module
        if self.mask is None or not (norm.training and norm.track_running_stats):
            return self._shadowed(input)
        own = norm.running_mean, norm.running_var
        norm.running_mean, norm.running_var = seen = [value.clone() for value in own]        # autograd keeps an eye on those it was given
        try:
            output = self._shadowed(input)
        finally:
            norm.running_mean, norm.running_var = own
        for value, new in zip(own, seen):
            value.copy_(torch.where(self.mask, new, value))
        return output


def shown_mask(module: nn.Module) -> Tensor | None:
    """The mask through which the module sees its parameters now; None: it is dense, or nothing is attached."""
    forward = getattr(module.forward, "__self__", None)
    return forward.mask if isinstance(forward, MaskedForward) else None


def _autocast(input: Tensor) -> torch.dtype | None:
    """Masking writes a fresh weight anyway; under autocast it writes it in the type that the product will use."""
    kind = input.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


class Attached:
    """Masks in place on a list of layers, until `remove`."""

    def __init__(self, model: nn.Module, layers: list[Layer]):
        self.forwards = [[MaskedForward(module, layer.key) for module in layer.modules] for layer in layers]
        # the fused inference path of nn.TransformerEncoderLayer reads its weights past any forward; this turns it off
        self._encoders = [(module, module.activation_relu_or_gelu) for module in model.modules()
                          if isinstance(module, nn.TransformerEncoderLayer)]
        for module, _ in self._encoders:
            module.activation_relu_or_gelu = 0

    def show(self, forward: list[Tensor | None], update: list[Tensor | None], dense_grad: bool) -> None:
        """Let every layer compute with `forward`; gradients arrive inside `update`, or everywhere with `dense_grad`."""
        for slots, mask, grad_mask in zip(self.forwards, forward, update):
            for slot in slots:
                slot.mask = mask
                slot.grad_mask = None if grad_mask is mask else grad_mask
                slot.dense_grad = dense_grad or grad_mask is None

    def remove(self) -> None:
        for slots in reversed(self.forwards):
            for slot in reversed(slots):
                slot.remove()
        for module, activation in self._encoders:
            module.activation_relu_or_gelu = activation
