"""SparseConv2d: nn.Conv2d whose weight exists only as its nonzeros."""
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from sparsekern import ops
from sparsekern.nn.sparse_init import initial_bias, initial_values, random_pattern, wanted_nnz
from sparsekern.nn.sparse_weight import SparseWeight, masked_values

_Pair = int | tuple[int, int]


class SparseConv2d(SparseWeight):
    """A 2-D convolution with a sparse weight: neither the dense weight nor its gradient ever exists (with backend="csr", on the CPU).

    The pattern is that of the weight flattened to [out_channels, in_channels / groups * R * S]. Usual constructors are `from_shape` and
    `from_dense`; see SparseWeight for `backend`, `replace_topology` and what `state_dict` holds.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: as in nn.Conv2d, padding also "valid" or "same".
        crow, col, values: int32 or int64 [out + 1], int32 [nnz], floating [nnz]: the weight in CSR. bias: [out] or None.
    Shape: x [N, C, H, W] or [C, H, W] as for nn.Conv2d.
    Raises:
        ValueError: groups that do not divide the channels, an unknown padding or "same" with a stride, a padding_mode other than "zeros".
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: _Pair, crow: Tensor, col: Tensor, values: Tensor,
                 bias: Tensor | None = None, *, stride: _Pair = 1, padding: _Pair | str = 0, dilation: _Pair = 1, groups: int = 1,
                 padding_mode: str = "zeros", backend: str = "csr"):
        check_convolution(in_channels, out_channels, stride, padding, groups, padding_mode)
        self.in_channels, self.out_channels, self.groups, self.padding_mode = in_channels, out_channels, groups, padding_mode
        self.kernel_size, self.stride, self.dilation = _pair(kernel_size), _pair(stride), _pair(dilation)
        self.padding = padding if isinstance(padding, str) else _pair(padding)
        super().__init__(out_channels, in_channels // groups * self.kernel_size[0] * self.kernel_size[1], crow, col, values, bias, backend)

    @classmethod
    def from_shape(cls, in_channels: int, out_channels: int, kernel_size: _Pair, *, sparsity: float | None = None, nnz: int | None = None,
                   seed: int = 0, bias: bool = True, stride: _Pair = 1, padding: _Pair | str = 0, dilation: _Pair = 1, groups: int = 1,
                   padding_mode: str = "zeros", device=None, dtype: torch.dtype | None = None, backend: str = "csr") -> "SparseConv2d":
        """A fresh layer with exactly round((1 - sparsity) * size) weights, or `nnz`, at random places; its dense weight is never made.

        Values and biases come from U(-1, 1) * sqrt(3 / fan-in), with the number of weights of the output channel as fan-in. Equal
        seeds give equal layers on every device.

        Raises:
            ValueError: a sparsity outside [0, 1), or one that leaves no weight; and those of the class.
        """
        check_convolution(in_channels, out_channels, stride, padding, groups, padding_mode)
        cols = in_channels // groups * _pair(kernel_size)[0] * _pair(kernel_size)[1]
        count = wanted_nnz(cls.__name__, out_channels, cols, sparsity, nnz)
        generator, dtype = torch.Generator().manual_seed(seed), dtype or torch.get_default_dtype()
        crow, col = random_pattern(out_channels, cols, count, generator)
        values = initial_values(crow, count, generator, dtype)
        return cls(in_channels, out_channels, kernel_size, crow.to(device), col.to(device), values.to(device),
                   initial_bias(crow, generator, dtype).to(device) if bias else None, stride=stride, padding=padding, dilation=dilation,
                   groups=groups, backend=backend)

    @classmethod
    @torch.no_grad()
    def from_dense(cls, module: nn.Conv2d, mask: Tensor, *, backend: str = "csr") -> "SparseConv2d":
        """The weights of `module` where `mask` (bool, of the weight's shape) is on, and its bias, as copies.

        Raises:
            ValueError: a mask of another shape, a padding_mode other than "zeros".
            TypeError: a module that is no nn.Conv2d or computes something else.
        """
        own = isinstance(module, nn.Conv2d) and type(module).forward is nn.Conv2d.forward
        if not own or type(module)._conv_forward is not nn.Conv2d._conv_forward:
            raise TypeError(f"{cls.__name__}.from_dense: expected an nn.Conv2d with its own forward, got {type(module).__name__}")
        crow, col, values = masked_values(cls.__name__, module.weight, mask)
        made = cls(module.in_channels, module.out_channels, module.kernel_size, crow, col, values,
                   None if module.bias is None else module.bias.clone(), stride=module.stride, padding=module.padding,
                   dilation=module.dilation, groups=module.groups, padding_mode=module.padding_mode, backend=backend)
        return made.train(module.training)

    @torch.no_grad()
    def to_dense(self) -> nn.Conv2d:
        """An nn.Conv2d with the same weights, zeros in between."""
        dense = skip_init(nn.Conv2d, self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation,
                          self.groups, self.bias is not None, device=self.values.device, dtype=self.values.dtype)
        dense.weight.copy_(self.dense_weight().view_as(dense.weight))
        if self.bias is not None:
            dense.bias.copy_(self.bias)
        return dense.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        if self._backend == "csr":
            x, padding = self._pad(x)
            return ops.sparse_conv2d(x, self.crow, self.col, self.values, self.bias, self.kernel_size, stride=self.stride, padding=padding,
                                     dilation=self.dilation, groups=self.groups)
        weight, bias = self._dense_operands(x)
        weight = weight.view(self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def _pad(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(x, padding) for the op; a "same" padding that is not even takes the odd row and column at the end, as in nn.Conv2d."""
        if self.padding == "valid":
            return x, (0, 0)
        if self.padding != "same":
            return x, self.padding
        high, wide = (d * (k - 1) for d, k in zip(self.dilation, self.kernel_size))
        if high % 2 or wide % 2:
            x = F.pad(x, (0, wide % 2, 0, high % 2))
        return x, (high // 2, wide // 2)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        text += "" if self.padding in ((0, 0), "valid") else f", padding={self.padding}"
        text += "" if self.dilation == (1, 1) else f", dilation={self.dilation}"
        text += "" if self.groups == 1 else f", groups={self.groups}"
        return f"{text}, bias={self.bias is not None}, nnz={self.nnz}, sparsity={self.sparsity:.4g}, backend={self.backend!r}"


def check_convolution(in_channels: int, out_channels: int, stride: _Pair, padding: _Pair | str, groups: int, padding_mode: str,
                      name: str = "SparseConv2d") -> None:
    """ValueError for a convolution that the layer called `name` does not compute."""
    if groups < 1 or in_channels % groups or out_channels % groups:
        raise ValueError(f"{name}: groups: expected a divisor of {in_channels} input and {out_channels} output channels, got {groups}")
    if isinstance(padding, str) and padding not in ("valid", "same"):
        raise ValueError(f'{name}: padding: expected numbers, "valid" or "same", got {padding!r}')
    if padding == "same" and _pair(stride) != (1, 1):
        raise ValueError(f'{name}: padding: "same" needs stride 1, got stride {stride}')
    if padding_mode != "zeros":
        raise ValueError(f'{name}: padding_mode: expected "zeros", got {padding_mode!r}; pad the input with F.pad instead')


def _pair(value: _Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)
