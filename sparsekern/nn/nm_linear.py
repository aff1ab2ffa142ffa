"""NMLinear: nn.Linear that computes with n of every m weights along its inputs, and its packed form for inference."""
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from sparsekern import ops
from sparsekern.nn.nm_packed import PackedNM, packed_parts
from sparsekern.nn.nm_weight import NMWeight

_ASSUMED_BATCH = 128                                        # rows to measure at where none are told


class NMLinear(NMWeight):
    """`y = x (W * mask)^T + b`, the mask keeping n of every m inputs; W stays dense and goes on training (see NMWeight).

    Args:
        in_features, out_features, bias, device, dtype: as in nn.Linear, initial values too. in_features divisible by m.
        n, m, gradient, lambda_w, refresh, mask: as in NMWeight.
    Shape: x [..., in_features] -> [..., out_features].
    """
    def __init__(self, in_features: int, out_features: int, n: int, m: int, bias: bool = True, *, gradient: str = "straight_through",
                 lambda_w: float | None = None, refresh: str = "forward", mask: Tensor | None = None, backend: str = "dense",
                 device=None, dtype: torch.dtype | None = None):
        dense = nn.Linear(in_features, out_features, bias, device=device, dtype=dtype)
        super().__init__(dense.weight, dense.bias, n, m, gradient=gradient, lambda_w=lambda_w, refresh=refresh, mask=mask, backend=backend)

    @classmethod
    @torch.no_grad()
    def from_dense(cls, module: nn.Linear, n: int, m: int, **options) -> "NMLinear":
        """All weights of `module` and its bias, as copies, seen through an n:m mask; options as in the class.

        Raises:
            ValueError: as the class. TypeError: a module that is no nn.Linear or computes something else.
        """
        if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
            raise TypeError(f"{cls.__name__}.from_dense: expected an nn.Linear with its own forward, got {type(module).__name__}")
        return cls._of(module.weight.clone(), None if module.bias is None else module.bias.clone(), n, m, **options).train(module.training)

    @classmethod
    def _of(cls, weight: Tensor, bias: Tensor | None, n: int, m: int, **options) -> "NMLinear":
        made = cls.__new__(cls)
        NMWeight.__init__(made, weight, bias, n, m, **options)
        return made

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @torch.no_grad()
    def to_dense(self) -> nn.Linear:
        """An nn.Linear with the kept weights, zeros in between."""
        return _linear(self.masked_weight(), self.bias).train(self.training)

    def pack(self, *, backend: str = "auto", shape: tuple[int, ...] | None = None) -> "PackedNMLinear":
        """The layer for inference: the kept weights, bit for bit, and where they stand.

        Args:
            backend: "packed", "dense" or "auto": both are measured, and the dense product is taken where packed is not the quicker one.
            shape: of the input to measure at; None: 128 rows. `choice` of what is returned tells times and reason.
        """
        made = PackedNMLinear(self.in_features, self.out_features, self.n, self.m, *packed_parts(self),
                              None if self.bias is None else self.bias.detach().clone(), backend="packed" if backend == "auto" else backend)
        if backend == "auto":
            made.choose(shape or (_ASSUMED_BATCH, self.in_features))
        return made.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        if self._backend == "dense":
            return F.linear(x, self._effective(x), self.bias)
        flat = x.reshape(-1, x.shape[-1])
        mask, values, pattern = self._kept()
        y = ops.csr_linear(flat, *pattern[:2], values, *pattern[2:], self.bias, self.out_features)
        if self._straight():
            y = _DenseGradient.apply(y, flat.detach(), self._decayed(mask))
        return y.reshape(*x.shape[:-1], self.out_features)

    def _pattern(self, mask: Tensor) -> dict[str, Tensor]:
        pattern = super()._pattern(mask)
        _, crow_t, row_t, perm = ops.csr_plan(*pattern.values(), self.rows, self.cols)
        return pattern | {"crow_t": crow_t, "row_t": row_t, "perm": perm}

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {self._options()}"


class _DenseGradient(torch.autograd.Function):
    """y as it is; all of the weight receives the gradient that a dense y = x W^T would give it."""

    @staticmethod
    def forward(ctx, y, x, weight):
        ctx.save_for_backward(x)
        ctx.dtype = weight.dtype
        return y.view_as(y)

    @staticmethod
    def backward(ctx, grad):
        x, = ctx.saved_tensors
        return grad, None, (grad.t() @ x.to(grad.dtype)).to(ctx.dtype)


class PackedNMLinear(PackedNM):
    """A linear layer from packed N:M weights, for inference; see PackedNM. Usually made by `NMLinear.pack`.

    Half values with at most two in any four neighbours (2:4, 1:4, 2:8, 1:8, 1:16) also have backend="sp24": the product for sparse tensor
    cores, `ops.sp24_mm`, which holds the weights a second time for it, in memory only.

    Shape: x [..., in_features] -> [..., out_features], in x's dtype, which is that of `values` or a half one beside float32.
    """

    def __init__(self, in_features: int, out_features: int, n: int, m: int, values: Tensor, index: Tensor, bias: Tensor | None = None, *,
                 backend: str = "packed"):
        self.in_features, self.out_features = in_features, out_features
        super().__init__(out_features, in_features, n, m, values, index, bias, backend)

    @property
    def backends(self) -> tuple[str, ...]:
        """With "sp24" for half values of which no four neighbours hold more than two."""
        fits = self.m % 4 == 0 and self.n <= 2 and self.values.dtype in (torch.float16, torch.bfloat16)
        return ("packed", "sp24", "dense") if fits else ("packed", "dense")

    @torch.no_grad()
    def unpack(self, **options) -> NMLinear:
        """An NMLinear whose dense parent is zero outside the stored positions, with these as its fixed mask; options as there."""
        bias = None if self.bias is None else self.bias.clone()
        return NMLinear._of(self.dense_weight(), bias, self.n, self.m, **{"refresh": "fixed", "mask": self.mask()} | options).train(self.training)

    @torch.no_grad()
    def to_dense(self) -> nn.Linear:
        """An nn.Linear with the same weights, zeros in between."""
        return _linear(self.dense_weight(), self.bias).train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        if self._backend == "dense":
            return F.linear(x, *self._beside(x, self.dense, self.bias))
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"{type(self).__name__}: x: expected shape [..., {self.in_features}], got {list(x.shape)}")
        y = self._product(x.reshape(-1, x.shape[-1]).t())
        return y.t().contiguous().view(*x.shape[:-1], self.out_features)

    def _product(self, b: Tensor) -> Tensor:
        if self._backend != "sp24":
            return super()._product(b)
        if torch.is_autocast_enabled(b.device.type) and b.dtype != torch.float64:
            b = b.to(torch.get_autocast_dtype(b.device.type))
        bias = None if self.bias is None else self.bias.to(b.dtype)
        return ops.sp24_mm(self.v.to(b.dtype), self.e, b, bias=bias, rows=self.rows)

    def _derived(self) -> dict[str, Tensor]:
        if self._backend != "sp24":
            return super()._derived()
        packed = ops.sp24_compress(self.dense_weight(), mask=self.mask())
        return {"v": packed.v, "e": packed.e}

    def extra_repr(self) -> str:
        return (f"in_features={self.in_features}, out_features={self.out_features}, {self.n}:{self.m}, bias={self.bias is not None}, "
                f"backend={self.backend!r}")


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    made = skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias is not None, device=weight.device, dtype=weight.dtype)
    made.weight.copy_(weight)
    if bias is not None:
        made.bias.copy_(bias)
    return made
