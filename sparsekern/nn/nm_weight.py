"""What the N:M layers share while they train: a dense parent weight that is seen through its N:M mask."""
import torch
from torch import Tensor, nn

from sparsekern import ops
from sparsekern.nn.sparse_weight import BACKENDS
from sparsekern.ops.nm_mask import LARGEST_GROUP

GRADIENTS, REFRESHES = ("straight_through", "sr_ste", "masked"), ("forward", "fixed")
SR_STE_DECAY = 2e-4


class NMLayer(nn.Module):
    """What every N:M layer has: n of every m, and a product chosen by name. A subclass derives in `_derive` what the product wants."""
    backends: tuple[str, ...]
    n: int
    m: int

    @property
    def sparsity(self) -> float:
        """Fraction of zeros."""
        return 1.0 - self.n / self.m

    @property
    def backend(self) -> str:
        """One of `backends`; set it at any time. `choose_backend` measures which is the quickest."""
        return self._backend

    @backend.setter
    def backend(self, name: str) -> None:
        if name not in self.backends:
            raise ValueError(f"{type(self).__name__}: backend: expected one of {', '.join(self.backends)}, got {name!r}")
        self._backend = name
        self._derive()


class NMWeight(NMLayer):
    """A module whose weight is dense but computes with n of every m neighbours along its dimension 1. Base of NMLinear and NMConv2d.

    Dimension 1 holds the input features or channels, so no group spans two taps of a kernel. `weight` and `bias` are the parameters.

    Args:
        weight: [out, in, ...]; bias: [out] or None. The tensors become the module's own.
        n, m: n weights are kept of every m, 1 <= n <= m <= 64; m divides the input features or channels.
        gradient: what reaches `weight`. "straight_through": the gradient of the masked weight, everywhere. "sr_ste": that, plus
            lambda_w times each hidden weight, once per forward pass (with a GradScaler, which would shrink that term, use bfloat16
            instead). "masked": the gradient of the kept weights only.
        lambda_w: for gradient="sr_ste" only; None is 2e-4.
        refresh: "forward": every forward pass keeps the n largest |W| of each group as they are then. "fixed": the mask is a buffer
            (saved as `mask`) that only `update_mask` changes.
        mask: bool of the weight's shape with exactly n per group, for refresh="fixed"; None: the largest |W|.
        backend: "dense" multiplies by the masked weight. "csr" computes output and input gradient from the kept weights only; the gradient
            of the weight stays one dense product unless gradient="masked". It pays at a density of a quarter or less, and more so with
            refresh="fixed", where nothing is laid out anew in every step; `choose_backend` measures it.
    Raises:
        ValueError: n, m or an option out of range, m that does not divide, a mask with another number of kept weights in a group.
    Source: Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", 2021 (SR-STE).
    """
    backends = BACKENDS
    weight: nn.Parameter
    mask: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, n: int, m: int, *, gradient: str = "straight_through",
                 lambda_w: float | None = None, refresh: str = "forward", mask: Tensor | None = None, backend: str = "dense"):
        super().__init__()
        name = type(self).__name__
        check_groups(name, weight.shape[1], n, m)
        for option, value, known in (("gradient", gradient, GRADIENTS), ("refresh", refresh, REFRESHES), ("backend", backend, self.backends)):
            if value not in known:
                raise ValueError(f"{name}: {option}: expected one of {', '.join(known)}, got {value!r}")
        if lambda_w is not None and (gradient != "sr_ste" or not 0 <= lambda_w < float("inf")):
            raise ValueError(f'{name}: lambda_w: expected a finite number >= 0 with gradient="sr_ste", got {lambda_w} with {gradient!r}')
        self.n, self.m, self.gradient = n, m, gradient
        self.lambda_w = lambda_w if lambda_w is not None else SR_STE_DECAY if gradient == "sr_ste" else 0.0
        if mask is not None:
            if refresh != "fixed":
                raise ValueError(f'{name}: mask: only refresh="fixed" keeps a mask, got refresh={refresh!r}')
            self._check_mask(name, weight.shape, mask)
        self.weight = nn.Parameter(weight.detach())
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach()))
        self.register_buffer("mask", None)
        self._backend, self._refresh = backend, refresh
        if refresh == "fixed":
            self.mask = self.current_mask() if mask is None else mask.to(weight.device, copy=True)
        self._derive()

    # What the layer is.

    @property
    def rows(self) -> int:
        return self.weight.shape[0]

    @property
    def cols(self) -> int:
        return self.weight[0].numel() if self.rows else 0

    @property
    def nnz(self) -> int:
        """Number of kept weights."""
        return self.weight.numel() // self.m * self.n

    @property
    def refresh(self) -> str:
        """ "forward" or "fixed"; turning to "fixed" keeps the mask of this moment."""
        return self._refresh

    @refresh.setter
    def refresh(self, value: str) -> None:
        if value not in REFRESHES:
            raise ValueError(f"{type(self).__name__}: refresh: expected one of {', '.join(REFRESHES)}, got {value!r}")
        mask = self.current_mask() if value == "fixed" else None
        self._refresh, self.mask = value, mask
        self._derive()

    # The mask.

    def current_mask(self) -> Tensor:
        """bool of the weight's shape: what the next forward pass keeps, exactly n of every m."""
        return ops.nm_mask(self.weight.detach(), self.n, self.m, dim=1) if self.mask is None else self.mask

    @torch.no_grad()
    def update_mask(self, mask: Tensor | None = None) -> None:
        """Keep the n largest |W| of this moment, or `mask`, from now on; written in place. With refresh="forward" there is nothing to do.

        Raises:
            ValueError: a mask of another shape or number of kept weights, or any with refresh="forward"; nothing has changed then.
        """
        name = f"{type(self).__name__}.update_mask"
        if self._refresh != "fixed":
            if mask is not None:
                raise ValueError(f'{name}: mask: expected None, as refresh="forward" takes it from the weight; set refresh = "fixed" first')
            return
        if mask is None:
            mask = ops.nm_mask(self.weight, self.n, self.m, dim=1)
        else:
            self._check_mask(name, self.weight.shape, mask)
        self.mask.copy_(mask)
        self._derive()

    @torch.no_grad()
    def masked_weight(self) -> Tensor:
        """The weight as the layer computes with it: a copy, +0 where it is hidden."""
        return ops.masked_weight(self.weight.detach(), self.current_mask())

    def _effective(self, x: Tensor) -> Tensor:
        """The masked weight with its gradient, in the type that a product with x computes in under autocast."""
        mask, weight, dtype = self.current_mask(), self.weight, None
        if torch.is_autocast_enabled(x.device.type) and torch.float64 not in (x.dtype, weight.dtype):
            dtype = torch.get_autocast_dtype(x.device.type)
        return ops.masked_weight(self._decayed(mask), mask, dense_grad=self.gradient != "masked", dtype=dtype)

    def _decayed(self, mask: Tensor) -> Tensor:
        """The weight; on the way back, lambda_w times what is hidden joins its gradient, in the weight's own precision."""
        if self.gradient == "sr_ste" and self.lambda_w and self.weight.requires_grad and torch.is_grad_enabled():
            return _Decayed.apply(self.weight, mask, self.lambda_w)
        return self.weight

    # The kept weights alone, for backend="csr".

    def _kept(self) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The mask, the kept weights ([nnz], with a gradient if gradient="masked") and the tensors of their pattern."""
        mask = self.current_mask()
        pattern = self._pattern(mask) if self._refresh != "fixed" else {name: getattr(self, name) for name in self._derived}
        weight = self.weight.detach() if self.gradient != "masked" else self.weight
        columns = pattern["col"].long().view(self.rows, self.cols // self.m * self.n)
        return mask, weight.flatten(1).gather(1, columns).flatten(), list(pattern.values())

    def _straight(self) -> bool:
        """Whether the dense weight wants a dense gradient."""
        return self.gradient != "masked" and self.weight.requires_grad and torch.is_grad_enabled()

    def _pattern(self, mask: Tensor) -> dict[str, Tensor]:
        """What the sparse products of a subclass want to know of the kept places: `crow` and `col` first."""
        crow, col, _ = ops.csr_from_mask(mask, nnz=self.nnz)
        return {"crow": crow, "col": col}

    @torch.no_grad()
    def _derive(self) -> None:
        """Nothing but a fixed mask is worth remembering for."""
        wanted = self._pattern(self.mask) if self._backend == "csr" and self._refresh == "fixed" else {}
        self._derived = tuple(wanted)
        set_derived(self, wanted)

    # Soundness.

    def _check_mask(self, where: str, shape: torch.Size, mask) -> None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != shape:
            got = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"{where}: mask: expected a bool tensor of the weight's shape {list(shape)}, got {got}")
        counts = mask.unflatten(1, (shape[1] // self.m, self.m)).sum(2)
        if (counts != self.n).any():
            place = (counts != self.n).nonzero()[0].tolist()
            raise ValueError(f"{where}: mask: expected exactly {self.n} of every {self.m} along dimension 1 to be kept, got "
                             f"{counts[tuple(place)]} in group {place[1]} of output {place[0]}")

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        mask = state_dict.get(f"{prefix}mask")
        if mask is not None and self.mask is not None:
            self._check_mask(f"{prefix}*" if prefix else "state", self.weight.shape, mask)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._derive()

    def _options(self) -> str:
        decay = f" (lambda_w={self.lambda_w:g})" if self.gradient == "sr_ste" else ""
        return (f"{self.n}:{self.m}, bias={self.bias is not None}, gradient={self.gradient!r}{decay}, refresh={self.refresh!r}, "
                f"backend={self.backend!r}")


class _Decayed(torch.autograd.Function):
    """The same weight; its gradient gains decay * W where the mask is off."""

    @staticmethod
    def forward(ctx, weight, mask, decay):
        ctx.save_for_backward(weight, mask)
        ctx.decay = decay
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, grad):
        weight, mask = ctx.saved_tensors
        return weight.masked_fill(mask, 0).mul_(ctx.decay).add_(grad), None, None


def check_groups(name: str, inputs: int, n: int, m: int) -> None:
    """ValueError unless 1 <= n <= m <= 64 and m divides `inputs`: a last group of fewer would be another pattern."""
    for key, value in (("n", n), ("m", m)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{name}: {key}: expected an integer, got {value!r}")
    if not 1 <= m <= LARGEST_GROUP:
        raise ValueError(f"{name}: m: expected a group of 1 to {LARGEST_GROUP} weights, got {m}")
    if not 1 <= n <= m:
        hint = "; n is the number kept, not the number of zeros" if n > m else ""
        raise ValueError(f"{name}: n: expected 1 to m = {m} weights kept of each group, got {n}{hint}")
    if inputs % m:
        raise ValueError(f"{name}: {inputs} inputs cannot be split into groups of m = {m}: leave this layer dense, or choose an m that divides them")


def set_derived(module: nn.Module, wanted: dict[str, Tensor]) -> None:
    """Make `wanted` the module's unsaved buffers; those of unchanged size are written in place, so that compiled graphs go on."""
    for name in [name for name in module._non_persistent_buffers_set if name not in wanted]:
        delattr(module, name)
    for name, tensor in wanted.items():
        old = module._buffers.get(name)
        if old is not None and old.shape == tensor.shape and old.dtype == tensor.dtype and old.device == tensor.device:
            old.copy_(tensor)
        else:
            module.register_buffer(name, tensor, persistent=False)


def as_matrix(weight: Tensor) -> Tensor:
    """[out, in, kh, kw] as [out, kh * kw * in]: the inputs of one tap stand side by side, so groups stay groups."""
    return weight.flatten(1) if weight.dim() == 2 else weight.permute(0, 2, 3, 1).flatten(1)
