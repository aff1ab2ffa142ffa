"""The Triton launcher of activity against the reference in float64: the same sums, and exactly the same signs."""
import math

import pytest
import torch

from sparsekern import ops
from sparsekern.ops._philox import random_signs
from sparsekern.testing import assert_close, each_implementation

pytestmark = pytest.mark.skipif("triton" not in each_implementation("activity"), reason="Triton runs on a GPU or in its interpreter")

SEEDS = [0, 1, -1, 2**63 - 1, -2**63, 0x0123456789ABCDEF]
OFFSETS = [0, 5, 127, 128, 2**31 + 3, 2**40 + 100]
SIGNED = [{}, {"signed": True, "seed": torch.tensor(-987654321987654321), "offset": 77}]
TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def launch(*args, **kwargs):
    return ops.implementations("activity")["triton"](*args, **kwargs)


def assert_agrees(x, reduction, **options):
    got = launch(x, **options)
    assert got.dtype == (torch.float64 if x.dtype == torch.float64 else torch.float32)
    assert_close(got, ops.implementations("activity")["reference"](x.double(), **options), reduction=reduction)


def test_by_hand():
    x = torch.tensor([[1.0, -2.0], [3.0, 4.0], [-5.0, 0.0]])
    assert launch(x).tolist() == [9, 6]
    # A 2x1 window over a 3x2 picture with one row of padding above and below: each column's tap sees the rows with one zero.
    picture = x.reshape(1, 1, 3, 2)
    assert launch(picture, kernel_size=[2, 1], padding=[1, 0]).tolist() == [15, 15]
    assert launch(picture, kernel_size=[2, 1]).tolist() == [1 + 2 + 3 + 4, 3 + 4 + 5]
    assert launch(picture, kernel_size=[1, 2]).tolist() == [9, 6]


@pytest.mark.parametrize("seed", SEEDS)
def test_signs_are_those_of_every_backend(seed):
    # Of unit vectors the signed sums are the signs.
    for offset in OFFSETS:
        got = launch(torch.eye(300), signed=True, seed=torch.tensor(seed), offset=offset)
        assert torch.equal(got, random_signs(torch.tensor(seed), offset, 300).float())


def test_a_later_batch_goes_on_where_the_first_ended():
    x, seed = torch.randint(-9, 9, (300, 5)).float(), torch.tensor([42])
    whole = launch(x, signed=True, seed=seed, offset=3)
    assert torch.equal(whole, launch(x[:170], signed=True, seed=seed, offset=3) + launch(x[170:], signed=True, seed=seed, offset=173))


@pytest.mark.parametrize("options", SIGNED, ids=["absolute", "signed"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_features_agree_with_float64(dtype, options):
    assert_agrees(torch.randn(300, 70).to(dtype), 300, **options)                                   # one chunk and a part; features past a block
    assert_agrees(torch.randn(4, 7, 11, 20).to(dtype).permute(0, 2, 3, 1), 880, **options)          # [N, C, H, W] seen as [N, H, W, C]


@pytest.mark.parametrize("options", SIGNED, ids=["absolute", "signed"])
@pytest.mark.parametrize("view", [
    lambda t: t[0, 0, 0], lambda t: t[:, 0, 0], lambda t: t[::2, :, ::3], lambda t: t.transpose(0, 3), lambda t: t[..., ::2], lambda t: t[:0],
    lambda t: t[..., :0], lambda t: t[:, :, :1].expand(-1, -1, 4, -1), lambda t: t.unsqueeze(2)[:, ::2, :, ::3]])
def test_shapes_and_strides(view, options):
    x = view(torch.randn(4, 5, 6, 37))
    assert_agrees(x, max(x.shape[:-1].numel(), 1), **options)


def test_more_than_three_kinds_of_leading_strides():
    assert_agrees(torch.randn(4, 4, 4, 4, 3)[::2, ::2, ::2, ::2], 16, **SIGNED[1])


@pytest.mark.parametrize("options", SIGNED, ids=["absolute", "signed"])
@pytest.mark.parametrize("window", [
    {"kernel_size": [3, 3], "padding": [1, 1]}, {"kernel_size": [3, 2], "stride": [2, 1], "padding": [1, 0], "dilation": [1, 2]},
    {"kernel_size": [1, 1]}, {"kernel_size": [1, 1], "stride": [3, 2]}, {"kernel_size": [9, 8]},
    {"kernel_size": [5, 5], "padding": [4, 4], "dilation": [2, 2]}], ids=str)
def test_taps_agree_with_float64(window, options):
    x = torch.randn(3, 5, 9, 8)
    assert_agrees(x, 200, **window, **options)
    assert_agrees(x.bfloat16().to(memory_format=torch.channels_last), 200, **window, **options)


def test_taps_without_images_or_output():
    assert launch(torch.ones(0, 2, 5, 5), kernel_size=[3, 3]).tolist() == [0.0] * 18
    assert launch(torch.ones(2, 0, 5, 5), kernel_size=[3, 3]).shape == (0,)
    assert launch(torch.ones(1, 1, 2, 5), kernel_size=[3, 3]).tolist() == [0.0] * 9          # the window just does not fit: no position


def test_nan_and_inf_show():
    x = torch.ones(5, 3)
    x[2, 0], x[3, 1] = math.nan, -math.inf
    got = launch(x)
    assert got[0].isnan() and got[1] == math.inf and got[2] == 5


@pytest.mark.parametrize("x, options, error, words", [
    (torch.ones(3, 2).int(), {}, TypeError, "x: expected float32, bfloat16, float16 or float64, got torch.int32"),
    (torch.ones(()), {}, ValueError, r"x: expected \[..., features\], got a scalar"),
    (torch.ones(3, 2), {"signed": True}, ValueError, "seed: expected an int64 tensor with signed=True, got None"),
    (torch.ones(3, 2), {"signed": True, "seed": torch.ones(1)}, TypeError, "seed: expected int64, got torch.float32"),
    (torch.ones(3, 2), {"signed": True, "seed": torch.ones(2).long()}, ValueError, r"seed: expected one number, got shape \[2\]"),
    (torch.ones(3, 2), {"offset": -1}, ValueError, "offset: expected a number from 0 to 2\\^62, got -1"),
    (torch.ones(3, 2), {"kernel_size": [1, 1]}, ValueError, r"x: expected \[N, C, H, W\] with kernel_size, got shape \[3, 2\]"),
    (torch.ones(1, 1, 3, 3), {"kernel_size": [3, 0]}, ValueError, r"kernel_size: expected two numbers >= 1, got \[3, 0\]"),
    (torch.ones(1, 1, 3, 3), {"kernel_size": [3, 3], "stride": [1]}, ValueError, r"stride: expected two numbers >= 1, got \[1\]"),
    (torch.ones(1, 1, 3, 3), {"kernel_size": [5, 5]}, ValueError, "kernel_size: expected a window that fits"),
])
def test_misuse(x, options, error, words):
    with pytest.raises(error, match=f"activity: {words}"):
        launch(x, **options)
