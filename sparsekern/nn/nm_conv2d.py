"""NMConv2d: nn.Conv2d that computes with n of every m weights along its input channels, and its packed form for inference."""
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsekern import ops
from sparsekern.nn.conv_geometry import ConvGeometry, Pair, check_conv2d
from sparsekern.nn.nm_packed import PackedNM, packed_parts
from sparsekern.nn.nm_weight import NMWeight

_ASSUMED = 128, 16                                          # images and their side to measure at where none are told
_PANEL = 1 << 18                                            # elements of the input laid out for one product


class _Geometry(ConvGeometry):
    """A convolution without groups."""

    def _set_geometry(self, in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode) -> None:
        super()._set_geometry(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
        if groups != 1:
            kind = "depthwise" if groups == in_channels else "grouped"
            raise ValueError(f"{type(self).__name__}: groups: expected 1, got {groups}: a {kind} convolution has no dense product along its input "
                             f"channels; leave this layer dense")


class NMConv2d(_Geometry, NMWeight):
    """A 2-D convolution by `W * mask`, the mask keeping n of every m input channels at each tap of the kernel; see NMWeight.

    Args:
        in_channels, out_channels, kernel_size, bias, stride, padding, dilation, device, dtype: as in nn.Conv2d, initial values too;
            padding also "valid" or "same". in_channels divisible by m.
        n, m, gradient, lambda_w, refresh, mask: as in NMWeight.
    Shape: x [N, C, H, W] or [C, H, W] as for nn.Conv2d.
    Raises:
        ValueError: groups other than 1 (they have no dense product along all input channels), a padding_mode
            other than "zeros", and those of NMWeight.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Pair, n: int, m: int, bias: bool = True, *, stride: Pair = 1,
                 padding: Pair | str = 0, dilation: Pair = 1, groups: int = 1, padding_mode: str = "zeros",
                 device=None, dtype: torch.dtype | None = None, **options):
        dense = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype)
        self._begin(dense, dense.weight, dense.bias, n, m, options)

    def _begin(self, like: nn.Conv2d, weight: Tensor, bias: Tensor | None, n: int, m: int, options: dict) -> None:
        self._set_geometry(like.in_channels, like.out_channels, like.kernel_size, like.stride, like.padding, like.dilation, like.groups,
                           like.padding_mode)
        NMWeight.__init__(self, weight, bias, n, m, **options)

    @classmethod
    @torch.no_grad()
    def from_dense(cls, module: nn.Conv2d, n: int, m: int, **options) -> "NMConv2d":
        """All weights of `module` and its bias, as copies, seen through an n:m mask; options as in the class.

        Raises:
            ValueError: as the class. TypeError: a module that is no nn.Conv2d or computes something else.
        """
        check_conv2d(f"{cls.__name__}.from_dense", module)
        made = cls.__new__(cls)
        made._begin(module, module.weight.clone(), None if module.bias is None else module.bias.clone(), n, m, options)
        return made.train(module.training)

    @torch.no_grad()
    def to_dense(self) -> nn.Conv2d:
        """An nn.Conv2d with the kept weights, zeros in between."""
        return self._as_conv2d(self.masked_weight())

    def pack(self, *, backend: str = "auto", shape: tuple[int, ...] | None = None) -> "PackedNMConv2d":
        """The layer for inference: the kept weights, bit for bit, and where they stand.

        Args:
            backend: "csr", "packed", "dense" or "auto": all are measured, and the dense product is taken where no other is quicker.
            shape: of the input to measure at; None: 128 images of 16 x 16. `choice` of what is returned tells times and reason.
        """
        made = PackedNMConv2d(self.in_channels, self.out_channels, self.kernel_size, self.n, self.m, *packed_parts(self),
                              None if self.bias is None else self.bias.detach().clone(), backend="packed" if backend == "auto" else backend,
                              **self._geometry())
        if backend == "auto":
            made.choose(shape or (_ASSUMED[0], self.in_channels, _ASSUMED[1], _ASSUMED[1]))
        return made.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        if self._backend == "dense":
            return self._convolve(x, self._effective(x), self.bias)
        mask, values, (crow, col) = self._kept()
        x, padding = self._pad(x)
        y = ops.sparse_conv2d(x, crow, col, values, self.bias, self.kernel_size, stride=self.stride, padding=padding, dilation=self.dilation)
        if self._straight():
            y = _DenseGradient.apply(y, x.detach(), self._decayed(mask), self.stride, padding, self.dilation)
        return y

    def extra_repr(self) -> str:
        return f"{self._describe()}, {self._options()}"


class _DenseGradient(torch.autograd.Function):
    """y as it is; all of the weight receives the gradient that a dense convolution would give it."""

    @staticmethod
    def forward(ctx, y, x, weight, stride, padding, dilation):
        ctx.save_for_backward(x)
        ctx.weight, ctx.geometry = (weight.shape, weight.dtype), (stride, padding, dilation)
        return y.view_as(y)

    @staticmethod
    def backward(ctx, grad):
        x, = ctx.saved_tensors
        shape, dtype = ctx.weight
        return grad, None, torch.nn.grad.conv2d_weight(x.to(grad.dtype), shape, grad, *ctx.geometry).to(dtype), None, None, None


class PackedNMConv2d(_Geometry, PackedNM):
    """A 2-D convolution from packed N:M weights, for inference; see PackedNM. Usually made by `NMConv2d.pack`.

    With backend="packed" the input is laid out as a matrix, some images at a time (for a 1 x 1 kernel these are its own numbers), and
    multiplied by what is stored. "csr" sweeps the images as SparseConv2d does, on the CPU the quicker of the two, and holds the
    weights a second time for it, in memory only.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation: as in nn.Conv2d.
        n, m, values, index, bias, backend: as in PackedNM; a row holds the taps of the kernel in order, the input channels of each.
    Shape: x [N, C, H, W] or [C, H, W] as for nn.Conv2d.
    """
    backends = ("csr", "packed", "dense")

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Pair, n: int, m: int, values: Tensor, index: Tensor,
                 bias: Tensor | None = None, *, stride: Pair = 1, padding: Pair | str = 0, dilation: Pair = 1, groups: int = 1,
                 padding_mode: str = "zeros", backend: str = "packed"):
        self._set_geometry(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
        PackedNM.__init__(self, out_channels, self.kernel_size[0] * self.kernel_size[1] * in_channels, n, m, values, index, bias, backend)

    @torch.no_grad()
    def unpack(self, **options) -> NMConv2d:
        """An NMConv2d whose dense parent is zero outside the stored positions, with these as its fixed mask; options as there."""
        made, bias = NMConv2d.__new__(NMConv2d), None if self.bias is None else self.bias.clone()
        mask = self._in_channel_order(self.mask())
        made._begin(self, self._weight(), bias, self.n, self.m, {"refresh": "fixed", "mask": mask} | options)
        return made.train(self.training)

    @torch.no_grad()
    def to_dense(self) -> nn.Conv2d:
        """An nn.Conv2d with the same weights, zeros in between."""
        return self._as_conv2d(self._weight())

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        if self._backend == "dense":
            return self._convolve(x, *self._beside(x, self.dense, self.bias))
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"{type(self).__name__}: x: expected shape [N, {self.in_channels}, H, W], got {list(x.shape)}")
        x, padding = self._pad(x)
        if self._backend == "csr":
            return ops.sparse_conv2d(x, self.crow, self.col, *self._beside(x, self.val, self.bias), self.kernel_size, stride=self.stride,
                                     padding=padding, dilation=self.dilation)
        (high, wide), (down, right), (above, left) = self.kernel_size, self.dilation, padding
        x = F.pad(x, (left, left, above, above)) if above or left else x
        taps = x.unfold(2, down * (high - 1) + 1, self.stride[0])[..., ::down].unfold(3, right * (wide - 1) + 1, self.stride[1])[..., ::right]
        rows, columns = taps.shape[2:4]                     # taps: [N, C, rows, columns, high, wide], a view
        parts = []
        for images in taps.split(max(1, _PANEL // max(1, self.cols * rows * columns))):
            size = (images.shape[0], rows, columns)
            panel = images.permute(4, 5, 1, 0, 2, 3).reshape(self.cols, math.prod(size))
            parts.append(self._product(panel).view(self.out_channels, *size).transpose(0, 1))
        return torch.cat(parts) if len(parts) > 1 else parts[0].contiguous()

    def _in_channel_order(self, matrix: Tensor) -> Tensor:
        """[out, kh * kw * in] as [out, in, kh, kw], row-major: the strides of a mere view would pass for channels-last at 1 x 1."""
        by_tap = matrix.view(self.out_channels, *self.kernel_size, self.in_channels)
        return by_tap.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)

    def _weight(self) -> Tensor:
        return self._in_channel_order(self.dense_weight())

    def _derived(self) -> dict[str, Tensor]:
        if self._backend == "csr":
            crow, col, val = ops.csr_from_mask(self._in_channel_order(self.mask()), self._weight(), nnz=self.nnz)
            return {"crow": crow, "col": col, "val": val}
        return {"dense": self._weight()} if self._backend == "dense" else {}

    def extra_repr(self) -> str:
        return f"{self._describe()}, {self.n}:{self.m}, bias={self.bias is not None}, backend={self.backend!r}"
