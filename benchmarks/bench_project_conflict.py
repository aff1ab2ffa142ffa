"""Conflict projection: it should cost the reading of both gradients, and next to nothing beside the update it is fused with."""
import pytest
import torch
from conflict_peers import cat_version, foreach_version, loop_version

from sparsekern import ops
from sparsekern.testing import assert_close, double, random_masks, resnet50_shapes

SHAPES = {"25.6M flat": [(25_600_000,)], "ResNet-50, 161 tensors": resnet50_shapes(), "1000 x 1K": [(1024,)] * 1000}
SCALARS = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4}


def pair(shapes, conflict):
    """Gradients with an angle well above or below 90 degrees, and masks that keep half of them and the first element."""
    a = [torch.randn(s) for s in shapes]
    b = [torch.randn_like(x) + (-0.1 if conflict else 0.1) * x for x in a]
    b[0].view(-1)[0] = 100.0
    masks = random_masks(a, 0.5)
    masks[0].view(-1)[0] = True
    return a, b, masks


def with_conflict(a, run):
    """A projection leaves no conflict, so each call first pushes one element of `a` against `b` again (microseconds)."""
    def contender():
        a[0].view(-1)[:1].sub_(1000.0)
        run()
    return contender


@pytest.mark.parametrize("conflict", [False, True], ids=["no conflict", "conflict"])
@pytest.mark.parametrize("shape", SHAPES)
def bench_project_conflict(race, shape, conflict):
    a, b, masks = pair(SHAPES[shape], conflict)
    bits, elements = [ops.pack_mask(m) for m in masks], sum(x.numel() for x in a)

    def mine(make):
        own = [x.clone() for x in a]
        return with_conflict(own, make(own)) if conflict else make(own)

    def right(forms):
        def verify():
            own, want = [x.clone() for x in a], double(a)
            ops.project_conflict_(own, b, masks=forms)
            ops.implementations("project_conflict_")["reference"](want, double(b), masks=forms)
            for x, y in zip(own, want):
                assert_close(x, y)
            assert all(torch.equal(x, y) for x, y in zip(own, a)) != conflict
        return verify

    contenders = {
        "sparsekern": mine(lambda own: lambda: ops.project_conflict_(own, b)),
        "sparsekern bool": mine(lambda own: lambda: ops.project_conflict_(own, b, masks=masks)),
        "sparsekern bits": mine(lambda own: lambda: ops.project_conflict_(own, b, masks=bits)),
        "sparsekern per tensor": mine(lambda own: lambda: ops.project_conflict_(own, b, per_tensor=True)),
        "torch cat, dot, addcmul, split": mine(lambda own: cat_version(own, b)),
        "torch foreach": mine(lambda own: foreach_version(own, b)),
        "Python loop with .item()": mine(lambda own: loop_version(own, b)),
    }
    targets = [("sparsekern", ">=", 4, "torch cat, dot, addcmul, split")] if elements > 1e7 else []
    if len(a) == 1:
        x, y = a[0].clone(), b[0]
        contenders["torch dot, dot"] = lambda: (torch.dot(x, y), torch.dot(y, y))
        contenders["torch dot, dot, axpy"] = lambda: (torch.dot(x, y), torch.dot(y, y), x.add_(y, alpha=1e-9))
        targets.append(("sparsekern", "<=", 0.9, "torch dot, dot, axpy") if conflict else ("sparsekern", "<=", 0.75, "torch dot, dot"))
    size = 20 if conflict else 8
    race("project_conflict_", f"{shape}, {'conflict' if conflict else 'no conflict'}", contenders,
         nbytes={"sparsekern": size * elements, "sparsekern per tensor": size * elements, "torch dot, dot": 12 * elements,
                 "torch dot, dot, axpy": 24 * elements}, check={"sparsekern": right(None), "sparsekern bits": right(bits)}, targets=targets)


@pytest.mark.parametrize("conflict", [False, True], ids=["no conflict", "conflict"])
@pytest.mark.parametrize("form", ["dense", "bool", "bits"])
@pytest.mark.parametrize("shape", SHAPES)
def bench_project_conflict_sgd(race, shape, form, conflict):
    a, b, masks = pair(SHAPES[shape], conflict)
    masks = {"dense": [None] * len(a), "bool": masks, "bits": [ops.pack_mask(m) for m in masks]}[form]
    elements = sum(x.numel() for x in a)
    params, buffers = ([torch.randn_like(x) for x in a] for _ in range(2))
    fused_p, fused_v, own, two_p, two_v = ([x.clone() for x in xs] for xs in (params, buffers, a, params, buffers))

    def fused(p=fused_p, v=fused_v, **options):
        ops.project_conflict_sgd_(p, a, b, v, masks, **SCALARS, **options)

    def two(g=own, p=two_p, v=two_v):
        ops.project_conflict_(g, b, masks=masks)
        ops.masked_sgd_(p, g, v, masks, **SCALARS)

    def verify():
        got, want = ([[x.clone() for x in xs] for xs in (params, buffers)] for _ in range(2))
        fused(*got)
        two([x.clone() for x in a], *want)
        assert all(torch.equal(x, y) for xs, ys in zip(got, want) for x, y in zip(xs, ys))

    race("project_conflict_sgd_", f"{shape}, {form} masks, {'conflict' if conflict else 'no conflict'}", {
        "sparsekern fused": fused,
        "sparsekern fused, per tensor": lambda: fused(per_tensor=True),
        "sparsekern two ops": with_conflict(own, two) if conflict else two,
    }, nbytes={"sparsekern fused": (32 if conflict else 28) * elements}, check={"sparsekern fused": verify},
        # "Never slower" without a conflict, with room for the noise of a shared machine.
        targets=[("sparsekern fused", *((">=", 1.15) if conflict else ("<=", 1.0)), "sparsekern two ops")]
        if elements > 1e7 else [])
