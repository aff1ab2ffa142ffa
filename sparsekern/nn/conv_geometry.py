"""What the convolution layers share: where the taps of the kernel go."""
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

Pair = int | tuple[int, int]


class ConvGeometry:
    """Channels, kernel size, stride, padding, dilation and groups of an nn.Conv2d; mixed into a module with a `bias`."""

    def _set_geometry(self, in_channels: int, out_channels: int, kernel_size: Pair, stride: Pair, padding: Pair | str, dilation: Pair, groups: int,
                      padding_mode: str) -> None:
        check_convolution(in_channels, out_channels, stride, padding, groups, padding_mode, type(self).__name__)
        self.in_channels, self.out_channels, self.groups, self.padding_mode = in_channels, out_channels, groups, padding_mode
        self.kernel_size, self.stride, self.dilation = pair(kernel_size), pair(stride), pair(dilation)
        self.padding = padding if isinstance(padding, str) else pair(padding)

    def _geometry(self) -> dict:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, **self._geometry())

    def _as_conv2d(self, weight: Tensor) -> nn.Conv2d:
        """weight: [out, in / groups, kh, kw]; it and the bias are copied."""
        made = skip_init(nn.Conv2d, self.in_channels, self.out_channels, self.kernel_size, bias=self.bias is not None, device=weight.device,
                         dtype=weight.dtype, **self._geometry())
        made.weight.copy_(weight)
        if self.bias is not None:
            made.bias.copy_(self.bias)
        return made.train(self.training)

    def _pad(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(x, padding) for the ops; a "same" padding that is not even takes the odd row and column at the end, as in nn.Conv2d."""
        if self.padding == "valid":
            return x, (0, 0)
        if self.padding != "same":
            return x, self.padding
        high, wide = (d * (k - 1) for d, k in zip(self.dilation, self.kernel_size))
        if high % 2 or wide % 2:
            x = F.pad(x, (0, wide % 2, 0, high % 2))
        return x, (high // 2, wide // 2)

    def _describe(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        text += "" if self.padding in ((0, 0), "valid") else f", padding={self.padding}"
        text += "" if self.dilation == (1, 1) else f", dilation={self.dilation}"
        return text + ("" if self.groups == 1 else f", groups={self.groups}")


def check_conv2d(where: str, module: nn.Module) -> None:
    """TypeError for a module that is no nn.Conv2d or computes something else."""
    own = isinstance(module, nn.Conv2d) and type(module).forward is nn.Conv2d.forward
    if not own or type(module)._conv_forward is not nn.Conv2d._conv_forward:
        raise TypeError(f"{where}: expected an nn.Conv2d with its own forward, got {type(module).__name__}")


def check_convolution(in_channels: int, out_channels: int, stride: Pair, padding: Pair | str, groups: int, padding_mode: str, name: str) -> None:
    """ValueError for a convolution that the layer called `name` does not compute."""
    if groups < 1 or in_channels % groups or out_channels % groups:
        raise ValueError(f"{name}: groups: expected a divisor of {in_channels} input and {out_channels} output channels, got {groups}")
    if isinstance(padding, str) and padding not in ("valid", "same"):
        raise ValueError(f'{name}: padding: expected numbers, "valid" or "same", got {padding!r}')
    if padding == "same" and pair(stride) != (1, 1):
        raise ValueError(f'{name}: padding: "same" needs stride 1, got stride {stride}')
    if padding_mode != "zeros":
        raise ValueError(f'{name}: padding_mode: expected "zeros", got {padding_mode!r}; pad the input with F.pad instead')


def pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)
