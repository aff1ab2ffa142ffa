"""activity through its CUDA binding against the float64 reference, with the signs of the same generator."""
import pytest
import torch

from sparsekern.ops._register import implementations
from sparsekern.testing import assert_close

reference = implementations("activity")["reference"]
SEED = torch.tensor(-(2**62) + 12345)
LINEAR = [(1,), (7,), (1, 5), (3, 0), (0, 3), (33, 1), (5, 24), (70, 33), (2, 3, 65), (130, 40), (9, 260)]
WINDOWS = [((2, 3, 7, 9), {"kernel_size": [3, 3]}),
           ((2, 4, 8, 8), {"kernel_size": [3, 3], "padding": [1, 1]}),
           ((1, 8, 9, 7), {"kernel_size": [3, 2], "stride": [2, 1], "padding": [1, 2], "dilation": [1, 2]}),
           ((2, 5, 6, 6), {"kernel_size": [1, 1]}),
           ((2, 5, 1, 6), {"kernel_size": [1, 1], "stride": [1, 2]}),
           ((1, 3, 17, 19), {"kernel_size": [7, 7], "stride": [2, 2], "padding": [3, 3]}),
           ((1, 2, 2, 2), {"kernel_size": [2, 2], "padding": [4, 4]})]


def assert_agrees(lane, x, x_there=None, **options):
    """`x_there` holds x on the device in a layout of its own."""
    want = reference(x.double(), **options)
    got = lane.op("activity")(lane.put(x) if x_there is None else x_there, **lane.put(options))
    assert got.dtype == torch.float32
    assert_close(got, want, dtype=torch.float32, reduction=max(x.numel(), 1))
    return got


def signs(is_signed, offset=3):
    return {"signed": True, "seed": SEED, "offset": offset} if is_signed else {}


@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_linear(lane, dtype, is_signed):
    for shape in LINEAR:
        assert_agrees(lane, torch.randn(shape).to(dtype), **signs(is_signed))


@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape, window", WINDOWS, ids=str)
def test_window(lane, shape, window, dtype, is_signed):
    x = torch.randn(shape).to(dtype)
    there = lane.put(x)
    for layout in (there, there.to(memory_format=torch.channels_last), lane.put(x[..., None]).expand(*shape, 2)[..., 0]):
        assert_agrees(lane, x, layout, **window, **signs(is_signed, 130))


@pytest.mark.parametrize("is_signed", [False, True])
def test_views_of_any_strides(lane, is_signed):
    x = lane.put(torch.randn(6, 10, 7, 9))
    for view in (x.permute(0, 2, 3, 1), x.permute(3, 2, 1, 0), x[..., 1:], x[:, 1::2], x[..., ::2], x[0, 0].t(),
                 x.flatten()[1:-8].view(-1, 3), x.to(memory_format=torch.channels_last).permute(0, 2, 3, 1)[..., 1:]):
        assert_agrees(lane, view.cpu().contiguous(), view, **signs(is_signed))


def test_by_hand(lane):
    x = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    assert lane.op("activity")(lane.put(x)).tolist() == [4.0, 6.0]
    image = torch.arange(1.0, 5.0).view(1, 1, 2, 2)
    assert lane.op("activity")(lane.put(-image), kernel_size=[2, 2], padding=[1, 1]).tolist() == [10.0, 10.0, 10.0, 10.0]


def test_signed_sums_of_batches_add(lane):
    x, op = torch.randn(300, 12), lane.op("activity")
    whole = op(lane.put(x), signed=True, seed=lane.put(SEED))
    parts = [op(lane.put(x[a:b]), signed=True, seed=lane.put(SEED), offset=a) for a, b in ((0, 77), (77, 300))]
    assert_close(parts[0] + parts[1], whole, reduction=300)


def test_nan_and_infinity_propagate_to_their_sums_only(lane):
    x = torch.randn(40, 20)
    x[7, 3], x[9, 5] = float("nan"), -float("inf")
    got = lane.op("activity")(lane.put(x)).cpu()
    assert got[3].isnan() and got[5] == float("inf") and got.isfinite().sum() == 18
    image = torch.randn(1, 2, 5, 5)
    image[0, 1, 0, 0] = float("nan")                                    # the corner is seen by one tap
    got = lane.op("activity")(lane.put(image), kernel_size=[3, 3], signed=True, seed=lane.put(SEED)).cpu()
    assert got.isnan().nonzero().flatten().tolist() == [9]


def test_equal_bits_whatever_the_alignment(lane):
    flat = lane.put(torch.randn(1801))
    view = flat[1:].view(90, 20)
    assert torch.equal(lane.op("activity")(view), lane.op("activity")(view.clone()))


def test_bad_input(lane):
    op, x = lane.op("activity"), lane.put(torch.zeros(2, 3, 4, 4))
    for error, words, arguments, options in [
            (ValueError, "seed: expected an int64 tensor", x, {"signed": True}),
            (TypeError, "seed: expected int64, got Int", x, {"signed": True, "seed": lane.put(SEED).int()}),
            (ValueError, "seed: expected one number", x, {"signed": True, "seed": lane.put(SEED).repeat(2)}),
            (ValueError, "offset: expected a number from 0", x, {"offset": -1}),
            (ValueError, "x: expected .N, C, H, W. with kernel_size", x[0], {"kernel_size": [3, 3]}),
            (ValueError, "stride: expected two numbers >= 1", x, {"kernel_size": [3, 3], "stride": [0, 1]}),
            (ValueError, "expected a window that fits", x, {"kernel_size": [7, 7]}),
            (ValueError, "expected .*features.*got a scalar", x[0, 0, 0, 0], {}),
            (TypeError, "x: expected float32, bfloat16, float16 or float64, got Int", x.int(), {}),
            (TypeError, "x: expected float32, bfloat16 or float16 on a CUDA device, got Double", x.double(), {})]:
        with pytest.raises(error, match=words):
            op(arguments, **options)
