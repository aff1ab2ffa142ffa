"""How much each input or output unit of a layer is at work in a batch: the factors of guided growth, in one read of the batch."""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekern.ops._register import define, fake, reference, uses_triton
from sparsekern.ops.philox import check_seed, random_signs

define("activity(Tensor x, *, bool signed=False, Tensor? seed=None, int offset=0, int[] kernel_size=[], int[] stride=[], int[] padding=[], "
       "int[] dilation=[]) -> Tensor")

_op = torch.ops.sparsekern.activity.default


def activity(x: Tensor, *, signed: bool = False, seed: Tensor | int | None = None, offset: int = 0, kernel_size: int | Sequence[int] = (),
             stride: int | Sequence[int] = (), padding: int | Sequence[int] = (), dilation: int | Sequence[int] = ()) -> Tensor:
    """The sum over the batch of |x|, or of x under random signs, for each feature; of a convolution for each kernel tap.

    With `h` a layer's inputs and `delta` its output gradients, |gradient of w[o, i]| is at most activity(h)[i] * activity(delta)[o]
    (equal for a batch of one), and the product of the signed sums of both, made with the same seed and offset, is an unbiased
    estimate of that gradient.

    Args:
        x: `[..., F]` without `kernel_size`: inputs or output gradients of a linear layer, tokens; any strides. The output gradient
            `[N, O, H, W]` of a convolution goes in as `x.permute(0, 2, 3, 1)`, which costs no copy.
            `[N, C, H, W]` with `kernel_size`: the input of a convolution. float32, bfloat16, float16 or float64.
        signed: sum s_b * x_b with s_b = +-1 instead of |x_b|. No absolute value is taken, so sums over batches can be added.
        seed: int64, one element on x's device, or a number; needed with `signed`.
        offset: the sign of position b is that of number `offset + b` (the module `philox` says how); later batches go on where the
            first ended. b counts the leading positions in row-major order, or the output positions (n * OH + oh) * OW + ow.
        kernel_size, stride, padding, dilation: of the convolution, as in torch (two numbers, or one for both).
    Returns:
        [F], or [C * R * S] in the order of a flattened weight. float32; float64 for float64. Padding counts 0; NaN and inf propagate.
    Raises:
        ValueError: wrong dimensions, a missing or misplaced seed, an output size below 0, a negative offset.
        TypeError: x not floating, seed not int64.
    Cost: one read of x; signed sums of a convolution one multiply-add per tap and element. Unfolding is never done.
    Source: Heddes et al., Always-Sparse Training by Growing Connections with Guided Stochastic Exploration (2024).
    """
    if isinstance(seed, int):
        seed = torch.tensor(seed, device=x.device)
    window = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation}
    return _op(x, signed=signed, seed=seed, offset=offset, **{name: _pair(value) for name, value in window.items()})


def _pair(value: int | Sequence[int]) -> list[int]:
    numbers = [value] if isinstance(value, int) else list(value)
    return numbers * 2 if len(numbers) == 1 else numbers


def check_activity(x, signed, seed, offset, kernel_size, stride, padding, dilation) -> tuple[list[int], list[int], list[int], list[int]] | None:
    """The checks of the compiled kernel, in its words; (output size, stride, padding, dilation) of a convolution, else None."""
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise TypeError(f"activity: x: expected float32, bfloat16, float16 or float64, got {x.dtype}")
    if signed and seed is None:
        raise ValueError("activity: seed: expected an int64 tensor with signed=True, got None")
    if signed:
        check_seed("activity", seed, x.device)
    if not 0 <= offset <= 2**62:
        raise ValueError(f"activity: offset: expected a number from 0 to 2^62, got {offset}")
    if not kernel_size:
        if x.dim() == 0:
            raise ValueError("activity: x: expected [..., features], got a scalar")
        return None
    if x.dim() != 4:
        raise ValueError(f"activity: x: expected [N, C, H, W] with kernel_size, got shape {list(x.shape)}")
    stride, padding, dilation = list(stride) or [1, 1], list(padding) or [0, 0], list(dilation) or [1, 1]
    for name, numbers, least in (("kernel_size", kernel_size, 1), ("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if len(numbers) != 2 or min(numbers) < least:
            raise ValueError(f"activity: {name}: expected two numbers >= {least}, got {list(numbers)}")
    size = [(x.shape[2 + i] + 2 * padding[i] - dilation[i] * (kernel_size[i] - 1) - 1) // stride[i] + 1 for i in range(2)]
    if min(size) < 0:
        raise ValueError(f"activity: kernel_size: expected a window that fits the padded input {list(x.shape[2:])}, got an output of {size}")
    return size, stride, padding, dilation


@reference("activity")
def activity_reference(x, *, signed=False, seed=None, offset=0, kernel_size=(), stride=(), padding=(), dilation=()) -> Tensor:
    window = check_activity(x, signed, seed, offset, kernel_size, stride, padding, dilation)
    x = x if x.dtype == torch.float64 else x.float()
    if window is None:
        flat = x.reshape(x.shape[:-1].numel(), x.shape[-1])
        return (flat * random_signs(seed, offset, len(flat))[:, None] if signed else flat.abs()).sum(0)
    (high, wide), (sh, sw), (ph, pw), (dh, dw) = window
    sign = random_signs(seed, offset, len(x) * high * wide).view(len(x), 1, high, wide) if signed else None
    padded, sums = F.pad(x, (pw, pw, ph, ph)), []
    for r in range(kernel_size[0]):
        for s in range(kernel_size[1]):
            tap = padded[:, :, r * dh:, s * dw:][:, :, ::sh, ::sw][:, :, :high, :wide]
            sums.append((tap * sign if signed else tap.abs()).sum((0, 2, 3)))
    return torch.stack(sums, dim=1).flatten()


@fake("activity")
def _(x, *, signed=False, seed=None, offset=0, kernel_size=(), stride=(), padding=(), dilation=()):
    taps = kernel_size[0] * kernel_size[1] if kernel_size else 1
    return x.new_empty([x.shape[1 if kernel_size else -1] * taps], dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


uses_triton("activity")
