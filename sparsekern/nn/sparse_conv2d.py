"""SparseConv2d: nn.Conv2d whose weight exists only as its nonzeros."""
import torch
from torch import Tensor, nn

from sparsekern import ops
from sparsekern.nn.conv_geometry import ConvGeometry, Pair, check_conv2d, check_convolution, pair
from sparsekern.nn.sparse_init import initial_bias, initial_values, random_pattern, wanted_nnz
from sparsekern.nn.sparse_weight import SparseWeight, masked_values


class SparseConv2d(ConvGeometry, SparseWeight):
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

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Pair, crow: Tensor, col: Tensor, values: Tensor,
                 bias: Tensor | None = None, *, stride: Pair = 1, padding: Pair | str = 0, dilation: Pair = 1, groups: int = 1,
                 padding_mode: str = "zeros", backend: str = "csr"):
        self._set_geometry(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
        super().__init__(out_channels, in_channels // groups * self.kernel_size[0] * self.kernel_size[1], crow, col, values, bias, backend)

    @classmethod
    def from_shape(cls, in_channels: int, out_channels: int, kernel_size: Pair, *, sparsity: float | None = None, nnz: int | None = None,
                   seed: int = 0, bias: bool = True, stride: Pair = 1, padding: Pair | str = 0, dilation: Pair = 1, groups: int = 1,
                   padding_mode: str = "zeros", device=None, dtype: torch.dtype | None = None, backend: str = "csr") -> "SparseConv2d":
        """A fresh layer with exactly round((1 - sparsity) * size) weights, or `nnz`, at random places; its dense weight is never made.

        Values and biases come from U(-1, 1) * sqrt(3 / fan-in), with the number of weights of the output channel as fan-in. Equal
        seeds give equal layers on every device.

        Raises:
            ValueError: a sparsity outside [0, 1), or one that leaves no weight; and those of the class.
        """
        check_convolution(in_channels, out_channels, stride, padding, groups, padding_mode, cls.__name__)
        cols = in_channels // groups * pair(kernel_size)[0] * pair(kernel_size)[1]
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
        check_conv2d(f"{cls.__name__}.from_dense", module)
        crow, col, values = masked_values(cls.__name__, module.weight, mask)
        made = cls(module.in_channels, module.out_channels, module.kernel_size, crow, col, values,
                   None if module.bias is None else module.bias.clone(), stride=module.stride, padding=module.padding,
                   dilation=module.dilation, groups=module.groups, padding_mode=module.padding_mode, backend=backend)
        return made.train(module.training)

    @torch.no_grad()
    def to_dense(self) -> nn.Conv2d:
        """An nn.Conv2d with the same weights, zeros in between."""
        return self._as_conv2d(self.dense_weight().view(self.out_channels, self.in_channels // self.groups, *self.kernel_size))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        if self._backend == "csr":
            x, padding = self._pad(x)
            return ops.sparse_conv2d(x, self.crow, self.col, self.values, self.bias, self.kernel_size, stride=self.stride, padding=padding,
                                     dilation=self.dilation, groups=self.groups)
        weight, bias = self._dense_operands(x)
        weight = weight.view(self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        return self._convolve(x, weight, bias)

    def extra_repr(self) -> str:
        return f"{self._describe()}, bias={self.bias is not None}, nnz={self.nnz}, sparsity={self.sparsity:.4g}, backend={self.backend!r}"
