"""One step of dynamic sparse training: drop the weakest active weights and grow the strongest inactive ones, in place."""
import torch
from torch import Tensor

from sparsekern.ops._register import define, fake, reference
from sparsekern.ops.mask_bits import check_mask, dense_mask, pack_mask_reference
from sparsekern.ops.topk_mask import check_scores, check_segments, common_dtype, segment_numbers, select_reference

_SCHEMA = "(Tensor(a!)[] masks, Tensor(b!)[] weights, Tensor[] grow_scores, {k} k_drop, {k} k_grow, *, Tensor[]? drop_scores=None, " \
    "bool global_=False, bool regrow_dropped=False, str on_drop=\"keep\", str on_grow=\"keep\", Tensor(c!)[]? momentum_buffers=None) " \
    "-> (Tensor dropped, Tensor grown)"
define("prune_regrow_" + _SCHEMA.format(k="Tensor"))
define("prune_regrow_.int_k" + _SCHEMA.format(k="int[]"))


@torch.no_grad()
def prune_regrow_(masks: list[Tensor], weights: list[Tensor], grow_scores: list[Tensor], k_drop: int | list[int] | Tensor,
                  k_grow: int | list[int] | Tensor, *, drop_scores: list[Tensor] | None = None, global_: bool = False,
                  regrow_dropped: bool = False, on_drop: str = "keep", on_grow: str = "keep",
                  momentum_buffers: list[Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Drop the `k_drop` active weights of lowest score, then grow the `k_grow` inactive ones of highest; masks change in place.

    Ties are settled as in `topk_mask`: among equal scores the lower flat index stays, or is grown. A NaN drop score goes first, a
    NaN grow score comes last. The active total is preserved when both numbers are equal and there are enough candidates.

    Args:
        masks: per weight a bool tensor of its shape, or packed int32 words (`pack_mask`). Written in place.
        weights: tensors of any shape, float32, bfloat16, float16 or float64 (CPU), dense in memory. Written as the next ones say.
        grow_scores: like `weights`, of any of these dtypes; ranked by magnitude.
        k_drop, k_grow: how many: a number for every segment, a list, or int64 tensors [segments] or [] (they stay on the device).
            Below 0 counts as 0; above what there is means all of it.
        drop_scores: like `weights`; the lowest go, signs count. None: the magnitudes of the weights.
        global_: all tensors are one segment.
        regrow_dropped: what was just dropped may be grown again; such a weight counts as neither, and keeps value and momentum.
        on_drop, on_grow: "keep" leaves the value's bits, "zero" writes +0.
        momentum_buffers: like `weights`; set to 0 at every dropped and every grown position. None: left alone.
    Returns:
        dropped, grown: [segments] int64, how many mask elements went from on to off and from off to on.
    Raises:
        ValueError: lists or shapes that disagree, a weight or mask that is not dense, an empty mask.
        TypeError: an unsupported dtype.
    Source: the update step of SET (Mocanu et al. 2018) and RigL (Evci et al. 2020).
    """
    for name, what in (("on_drop", on_drop), ("on_grow", on_grow)):
        if what not in ("keep", "zero"):
            raise ValueError(f'prune_regrow_: {name}: expected "keep" or "zero", got {what!r}')
    for name, items in (("masks", masks), ("weights", weights), ("grow_scores", grow_scores)):
        if isinstance(items, Tensor):
            raise TypeError(f"prune_regrow_: {name}: expected a list of tensors, got one tensor; write [{name}]")
    segments = 1 if global_ else len(weights)
    k_drop, k_grow = segment_numbers(k_drop, segments), segment_numbers(k_grow, segments)
    if isinstance(k_drop, Tensor) or isinstance(k_grow, Tensor):
        device = (k_drop if isinstance(k_drop, Tensor) else k_grow).device
        k_drop, k_grow = (k if isinstance(k, Tensor) else torch.tensor(k, dtype=torch.int64, device=device) for k in (k_drop, k_grow))
    op = torch.ops.sparsekern.prune_regrow_
    return (op.default if isinstance(k_drop, Tensor) else op.int_k)(
        masks, weights, grow_scores, k_drop, k_grow, drop_scores=drop_scores, global_=global_, regrow_dropped=regrow_dropped,
        on_drop=on_drop, on_grow=on_grow, momentum_buffers=momentum_buffers)


def _check(masks, weights, grow_scores, drop_scores, momentum_buffers) -> None:
    op, count = "prune_regrow_", len(weights)
    lists = {"masks": masks, "grow_scores": grow_scores, "drop_scores": drop_scores, "momentum_buffers": momentum_buffers}
    for name, items in lists.items():
        if items is not None and len(items) != count:
            raise ValueError(f"{op}: {name}: expected a list of {count} tensors like the first list, got {len(items)}")
    for i, (mask, weight) in enumerate(zip(masks, weights)):
        if mask.numel() == 0 and weight.numel() != 0:
            raise ValueError(f"{op}: masks[{i}]: expected a mask to write, got an empty tensor; start from torch.ones")
        check_mask(op, f"masks[{i}]", mask, weight)
        for name in ("grow_scores", "drop_scores", "momentum_buffers"):
            if lists[name] is not None and lists[name][i].shape != weight.shape:
                raise ValueError(f"{op}: {name}[{i}]: expected shape {list(weight.shape)}, got {list(lists[name][i].shape)}")
    check_scores(op, "grow_scores", grow_scores)
    check_scores(op, "weights" if drop_scores is None else "drop_scores", weights if drop_scores is None else drop_scores)


@reference("prune_regrow_.int_k")
@reference("prune_regrow_")
def prune_regrow_reference(masks, weights, grow_scores, k_drop, k_grow, *, drop_scores=None, global_=False, regrow_dropped=False,
                           on_drop="keep", on_grow="keep", momentum_buffers=None):
    _check(masks, weights, grow_scores, drop_scores, momentum_buffers)
    segments = 1 if global_ else len(weights)
    k_drop, k_grow = (check_segments("prune_regrow_", name, k, segments, global_) for name, k in (("k_drop", k_drop), ("k_grow", k_grow)))

    def rows(tensors):
        flat = [x.reshape(-1) for x in tensors]
        return [torch.cat([x.to(common_dtype(flat)) for x in flat])] if global_ and flat else flat

    before = rows([dense_mask(mask, weight) for mask, weight in zip(masks, weights)])
    counts, after = [], []
    strength = rows(weights if drop_scores is None else drop_scores)
    for on, drop, grow, fewer, more in zip(before, strength, rows(grow_scores), k_drop, k_grow):
        active = on.sum()
        fewer = fewer.to(on.device) if isinstance(fewer, Tensor) else fewer
        kept, _, _ = select_reference(drop, on, active - torch.minimum(active, torch.zeros_like(active) + fewer).clamp(min=0),
                                      largest=True, use_abs=drop_scores is None)
        grown, _, _ = select_reference(grow, ~kept if regrow_dropped else ~on, more, largest=True, use_abs=True)
        after.append(kept | grown)
        counts.append(((on & ~after[-1]).sum(), (after[-1] & ~on).sum()))
    if not counts:
        return tuple(torch.zeros(segments, dtype=torch.int64) for _ in range(2))
    if global_:
        sizes = [weight.numel() for weight in weights]
        before, after = before[0].split(sizes), after[0].split(sizes)
    for i, weight in enumerate(weights):
        was, now = before[i].view(weight.shape), after[i].view(weight.shape)
        zeroed = ((was & ~now) & (on_drop == "zero")) | ((now & ~was) & (on_grow == "zero"))
        weight.masked_fill_(zeroed, 0)
        if momentum_buffers is not None:
            momentum_buffers[i].masked_fill_(was ^ now, 0)
        masks[i].copy_(now if masks[i].dtype == torch.bool else pack_mask_reference(now))
    return tuple(torch.stack(column) for column in zip(*counts))


@fake("prune_regrow_.int_k")
@fake("prune_regrow_")
def _(masks, weights, grow_scores, k_drop, k_grow, *, drop_scores=None, global_=False, regrow_dropped=False, on_drop="keep", on_grow="keep",
      momentum_buffers=None):
    device = weights[0].device if weights else None
    return tuple(torch.empty([1 if global_ else len(weights)], dtype=torch.int64, device=device) for _ in range(2))
