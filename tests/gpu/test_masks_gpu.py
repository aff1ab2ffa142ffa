"""masked_weight, packed masks, activity and channel scores on a GPU: past 32 bits, whole models, the gradient."""
import pytest
import torch

from sparsekern import ops
from sparsekern._native import native
from sparsekern.testing import assert_close, random_masks, resnet50_shapes

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not native.cuda, reason="built without CUDA")]
SHAPES = [shape for shape in resnet50_shapes() if len(shape) > 1]


def on_gpu(tensors):
    return [tensor.cuda() for tensor in tensors]


def test_masks_of_more_elements_than_32_bits_count():
    n = 2**32 + 77
    mask = torch.zeros(n, dtype=torch.bool, device="cuda")
    places = torch.tensor([0, 31, 2**31 - 1, 2**31, 2**32 - 1, 2**32, n - 1], device="cuda")
    mask[places] = True
    bits = ops.pack_mask(mask)
    assert torch.equal(bits.nonzero().flatten(), (places // 32).unique())
    assert ops.mask_stats([mask], [mask]).tolist() == ops.mask_stats([bits], [bits]).tolist() == [[7, 7, 7, 0]]
    assert torch.equal(ops.unpack_mask(bits, [n]), mask)


def test_weights_of_more_elements_than_32_bits_count():
    n = 2**31 + 77
    weight = torch.ones(n, dtype=torch.bfloat16, device="cuda")
    mask = torch.zeros(n, dtype=torch.bool, device="cuda")
    mask[[0, 2**31 - 1, 2**31, n - 1]] = True
    for form in (mask, ops.pack_mask(mask)):
        assert torch.equal(ops.masked_weight(weight, form), mask.to(torch.bfloat16))
    assert ops.channel_scores([weight.view(n, 1)[:2**29]], [mask.view(n, 1)[:2**29]])[0].sum() == 1


@pytest.mark.parametrize("form", ["bool", "bits"])
def test_a_whole_model_has_the_cpus_bits(form):
    weights = [torch.randn(shape) for shape in SHAPES]
    masks = [mask if form == "bool" else ops.pack_mask(mask) for mask in random_masks(weights, 0.1)]
    for dtype in (None, torch.bfloat16):
        got, want = ops.masked_weight(on_gpu(weights), on_gpu(masks), dtype=dtype), ops.masked_weight(weights, masks, dtype=dtype)
        assert all(torch.equal(one.cpu(), other) for one, other in zip(got, want))
    assert torch.equal(ops.mask_stats(on_gpu(masks)).cpu(), ops.mask_stats(masks))
    for got, want in zip(ops.channel_scores(on_gpu(weights), on_gpu(masks), beta=0.5), ops.channel_scores(weights, masks, beta=0.5)):
        assert_close(got, want.double(), reduction=4096)


def test_gradient_is_masked():
    weight, mask = torch.randn(64, 64, device="cuda", requires_grad=True), torch.rand(64, 64, device="cuda") < 0.3
    with torch.autocast("cuda", torch.bfloat16):
        torch.nn.functional.linear(torch.randn(8, 64, device="cuda"), ops.masked_weight(weight, mask)).square().sum().backward()
    assert weight.grad[~mask].count_nonzero() == 0 and weight.grad[mask].count_nonzero() > 0


@pytest.mark.parametrize("signed", [False, True])
def test_activity_agrees_with_the_cpu(signed):
    options = {"signed": True, "offset": 5} if signed else {}
    window = {"kernel_size": 3, "padding": 1}
    x = torch.randn(32, 64, 56, 56)
    for given, more in ((x.permute(0, 2, 3, 1), {}), (x, window), (x.to(memory_format=torch.channels_last), window), (torch.randn(4096, 4096), {})):
        seeds = [{"seed": torch.tensor(7, device=device)} if signed else {} for device in ("cuda", "cpu")]
        got = ops.activity(given.cuda(), **more, **options, **seeds[0])
        assert_close(got, ops.activity(given.double(), **more, **options, **seeds[1]), dtype=torch.float32, reduction=given.numel())
        assert torch.equal(got, ops.activity(given.cuda(), **more, **options, **seeds[0]))
