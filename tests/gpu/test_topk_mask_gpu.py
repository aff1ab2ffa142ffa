"""Selection and prune_regrow_ on a GPU at the size of real nets, against the CPU kernels: masks, thresholds and counts agree exactly."""
import math

import pytest
import torch

from sparsekern import ops
from sparsekern._native import native
from sparsekern.testing import random_masks, resnet50_shapes

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not native.cuda, reason="built without CUDA")]
KINDS = {"normal": lambda x: x, "all equal": lambda x: torch.full_like(x, 1.5), "two values": lambda x: torch.where(x > 0.5, 2.0, 1.0),
         "sorted": lambda x: x.sort().values, "narrow": lambda x: 1 + 3e-5 * x.clamp(0, 1), "zeros": lambda x: x * (x > 1),
         "1% NaN": lambda x: torch.where(torch.rand_like(x) < 0.01, math.nan, x)}


def on_gpu(value):
    return value.cuda() if isinstance(value, torch.Tensor) else [on_gpu(v) for v in value] if isinstance(value, list) else value


def assert_same(got, want):
    for a, b in zip(got[0], want[0], strict=True):
        assert torch.equal(a.cpu(), b)
    assert torch.equal(got[1].cpu().nan_to_num(7e4), want[1].nan_to_num(7e4)) and torch.equal(got[2].cpu(), want[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_one_large_segment(kind, dtype):
    x = KINDS[kind](torch.randn(10_000_019)).to(dtype)
    able = torch.rand(x.shape) < 0.5
    for k, options in ((1_000_000, {}), (5_000_009, {"largest": False, "packed": True}), (77, {"use_abs": False, "eligible": [able]})):
        want = ops.topk_mask([x], k, **options)
        theirs = {key: on_gpu(value) for key, value in options.items()}
        for _ in range(2):
            assert_same(ops.topk_mask([x.cuda()], k, **theirs), want)


@pytest.mark.parametrize("options", [{}, {"global_": True}, {"global_": True, "packed": True, "use_abs": False}], ids=str)
def test_a_whole_net(options):
    scores = [torch.randn(s) for s in resnet50_shapes()]
    k = torch.tensor([2_000_000] if options.get("global_") else [x.numel() // 10 for x in scores])
    assert_same(ops.topk_mask(on_gpu(scores), k.cuda(), **options), ops.topk_mask(scores, k, **options))


def test_ten_thousand_segments():
    scores = list(torch.randn(10_000, 1024).unbind())
    assert_same(ops.topk_mask(on_gpu(scores), 100), ops.topk_mask(scores, 100))


def test_a_captured_selection_follows_its_numbers():
    x, k = torch.randn(3_000_001).cuda(), torch.tensor([1000]).cuda()
    ops.topk_mask([x], k)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        masks, thresholds, counts = ops.topk_mask([x], k)
    for number, scale in ((5, 1.0), (2_999_999, 0.01), (0, 3.0), (1_500_000, -2.0)):
        k.fill_(number)
        x.mul_(scale)
        graph.replay()
        assert_same((masks, thresholds, counts), ops.topk_mask([x.cpu()], number))


@pytest.mark.parametrize("options", [{}, {"global_": True, "regrow_dropped": True, "on_grow": "zero"}], ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_prune_and_regrow_a_whole_net(options, packed):
    weights = [torch.randn(s) for s in resnet50_shapes()]
    masks, grow, momentum = random_masks(weights, 0.1), [torch.randn_like(w) for w in weights], [torch.randn_like(w) for w in weights]
    masks = [ops.pack_mask(m) for m in masks] if packed else masks
    k = [500_000] if options.get("global_") else [w.numel() // 50 for w in weights]
    theirs = [on_gpu(x) for x in (masks, weights, momentum)]
    got = ops.prune_regrow_(theirs[0], theirs[1], on_gpu(grow), k, k, momentum_buffers=theirs[2], **options)
    want = ops.prune_regrow_(masks, weights, grow, k, k, momentum_buffers=momentum, **options)
    for a, b in zip([*theirs[0], *theirs[1], *theirs[2], *got], [*masks, *weights, *momentum, *want], strict=True):
        assert torch.equal(a.cpu(), b)


def test_more_than_2_31_elements():
    if torch.cuda.mem_get_info()[0] < 16 * 2**30:
        pytest.skip("needs 16 GiB of free device memory")
    x = torch.zeros(2**31 + 77, dtype=torch.bfloat16, device="cuda")
    for at, value in ((5, -3.0), (2**31 - 1, 2.0), (2**31 + 70, 4.0)):
        x[at] = value
    for k, last, expected in ((2, 3.0, {0: 1 << 5, 2**26 + 2: 1 << 6}), (5, 0.0, {0: 0b100011, 2**26 - 1: 1 << 31, 2**26 + 2: 1 << 6})):
        (bits,), thresholds, counts = ops.topk_mask([x], k, packed=True)
        words = bits.nonzero().flatten().tolist()
        assert {w: bits[w].item() & 0xFFFFFFFF for w in words} == expected and thresholds.item() == last and counts.item() == k
