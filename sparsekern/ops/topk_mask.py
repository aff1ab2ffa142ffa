"""Exact selection: masks of the k largest (or smallest) scores per tensor, or of a whole list together, in one call."""
import torch
from torch import Tensor

from sparsekern.ops._register import define, fake, reference
from sparsekern.ops.mask_bits import check_mask, dense_mask, pack_mask_reference, packed_words

_OPTIONS = "*, bool largest=True, bool use_abs=True, bool global_=False, Tensor[]? eligible=None, {packed}Tensor? hint=None) -> "
for _suffix, _k in (("", "Tensor k"), (".int_k", "int[] k")):
    define(f"topk_mask{_suffix}(Tensor[] scores, {_k}, {_OPTIONS.format(packed='bool packed=False, ')}"
           "(Tensor[] masks, Tensor thresholds, Tensor counts)")
    define(f"select_threshold{_suffix}(Tensor[] scores, {_k}, {_OPTIONS.format(packed='')}(Tensor thresholds, Tensor counts)")


@torch.no_grad()
def topk_mask(scores: list[Tensor], k: int | list[int] | Tensor, *, largest: bool = True, use_abs: bool = True, global_: bool = False,
              eligible: list[Tensor | None] | None = None, packed: bool = False,
              hint: Tensor | None = None) -> tuple[list[Tensor], Tensor, Tensor]:
    """Mark exactly the `k` first elements of every tensor, or of all tensors together.

    Ties at the threshold go to the lowest flat index (of a list: to the earlier tensor). -0 equals +0. NaN comes last both for
    the largest and for the smallest: it is taken only when everything else is. (`torch.topk` ranks NaN highest.)

    Args:
        scores: tensors of any shape and strides, float32, bfloat16, float16 or float64 (CPU); a segment each.
        k: how many to take: a number for every segment, a list, or an int64 tensor [segments] or [] (it stays on the device).
            Below 0 counts as 0, above the number of candidates as all of them.
        largest: take the largest, else the smallest.
        use_abs: compare magnitudes.
        global_: all tensors are one segment, and k one number; dtypes may differ.
        eligible: per tensor its candidates: a bool tensor of its shape, packed int32 words, or None (or an empty tensor): all.
        packed: return packed int32 words (`pack_mask`) instead of bool masks.
        hint: thresholds of an earlier, similar call; changes speed only. The compiled kernels ignore it: their samples cost about 10 %.
    Returns:
        masks: per tensor bool of its shape, or [ceil(n / 32)] int32.
        thresholds: [segments] the value taken last (its magnitude with `use_abs`), NaN if none; in the scores' dtype, of several
            the one they promote to.
        counts: [segments] int64, how many were taken.
    Raises:
        ValueError: numbers of k or masks that do not fit the list; on a GPU, 2^32 elements or more that are ranked together.
        TypeError: an unsupported dtype of scores, k or masks.
    Source: bracketing by a sample after Floyd and Rivest, "Expected time bounds for selection", 1975. Bytes per fp32 element:
        4 and the mask; 4 more on a GPU where many scores are equal.
    """
    scores, k, eligible = _arguments("topk_mask", scores, k, global_, eligible)
    op = torch.ops.sparsekern.topk_mask
    return (op.default if isinstance(k, Tensor) else op.int_k)(
        scores, k, largest=largest, use_abs=use_abs, global_=global_, eligible=eligible, packed=packed, hint=hint)


@torch.no_grad()
def select_threshold(scores: list[Tensor], k: int | list[int] | Tensor, *, largest: bool = True, use_abs: bool = True,
                     global_: bool = False, eligible: list[Tensor | None] | None = None,
                     hint: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The thresholds and counts of `topk_mask`, without the masks. Arguments and errors as there."""
    scores, k, eligible = _arguments("select_threshold", scores, k, global_, eligible)
    op = torch.ops.sparsekern.select_threshold
    return (op.default if isinstance(k, Tensor) else op.int_k)(
        scores, k, largest=largest, use_abs=use_abs, global_=global_, eligible=eligible, hint=hint)


def _arguments(op: str, scores, k, global_: bool, eligible):
    """The lists as the ops take them: no bare tensor, one k per segment, no None among the masks."""
    if isinstance(scores, Tensor):
        raise TypeError(f"{op}: scores: expected a list of tensors, got one tensor; write [scores]")
    k = segment_numbers(k, 1 if global_ else len(scores))
    if eligible is not None:
        if len(eligible) != len(scores):
            raise ValueError(f"{op}: eligible: expected a list of {len(scores)} tensors like the first list, got {len(eligible)}")
        eligible = [x.new_empty(0, dtype=torch.bool) if mask is None else mask for x, mask in zip(scores, eligible)]
    return scores, k, eligible


def segment_numbers(k, segments: int):
    """A plain int means the same number for every segment; tensors and lists stay as they are."""
    return k if isinstance(k, Tensor) else [int(k)] * segments if not isinstance(k, (list, tuple)) else list(k)


def check_segments(op: str, name: str, k, segments: int, global_: bool):
    """The checks of the compiled kernels, in their words; returns k as a list of numbers or an expanded tensor."""
    if isinstance(k, Tensor):
        if k.dtype != torch.int64:
            raise TypeError(f"{op}: {name}: expected int64, got {k.dtype}")
        if k.dim() > 1:
            raise ValueError(f"{op}: {name}: expected a vector or a 0-d tensor, got shape {list(k.shape)}")
        k = k.expand(segments) if k.dim() == 0 else k
    if len(k) != segments:
        wanted = " number for the whole list (global_=True)" if global_ else " numbers, one per list entry"
        raise ValueError(f"{op}: {name}: expected {segments}{wanted}, got {len(k)}")
    return k


def check_scores(op: str, name: str, scores) -> None:
    for i, x in enumerate(scores):
        if x.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            raise TypeError(f"{op}: {name}[{i}]: expected float32, bfloat16, float16 or float64, got {x.dtype}")


def select_reference(scores: Tensor, eligible: Tensor, k, *, largest: bool, use_abs: bool) -> tuple[Tensor, Tensor, Tensor]:
    """[n] mask, [] threshold, [] count of one segment [n]; k is a number or a 0-d tensor, which is not read back."""
    values = scores.abs() if use_abs else scores
    values = torch.where(values == 0, torch.zeros_like(values), values)                        # -0 is 0
    worst = float("-inf") if largest else float("inf")
    order = torch.where(values.isnan(), worst, values).argsort(descending=largest, stable=True)
    # The stable sort that comes last decides first: numbers, then NaN, then what is not eligible.
    rank = torch.where(eligible, values.isnan().to(torch.uint8), 2)[order].argsort(stable=True)
    order = order[rank]
    k = k.to(scores.device) if isinstance(k, Tensor) else torch.full((), k, device=scores.device)
    count = torch.minimum(k.clamp(min=0), eligible.sum())
    mask = torch.zeros_like(eligible).scatter_(0, order, torch.arange(len(scores), device=scores.device) < count)
    nothing = values.new_full((), float("nan"))
    if len(scores) == 0:
        return mask, nothing, count
    last = values[order[(count - 1).clamp(min=0)]]
    return mask, torch.where(count > 0, last, nothing), count


def _select(op, scores, k, *, largest, use_abs, global_, eligible):
    """Masks in the scores' shapes, thresholds and counts: what the references share."""
    check_scores(op, "scores", scores)
    segments = 1 if global_ else len(scores)
    k = check_segments(op, "k", k, segments, global_)
    if eligible is not None and len(eligible) != len(scores):
        raise ValueError(f"{op}: eligible: expected a list of {len(scores)} tensors like the first list, got {len(eligible)}")
    for i, x in enumerate(scores if eligible is not None else []):
        check_mask(op, f"eligible[{i}]", eligible[i], x)
    device = scores[0].device if scores else None
    dtype = common_dtype(scores)
    flat = [x.reshape(-1) for x in scores]
    allowed = [torch.ones_like(x, dtype=torch.bool) if eligible is None else dense_mask(eligible[i], scores[i]).reshape(-1)
               for i, x in enumerate(flat)]
    if global_ and scores:
        flat, allowed = [torch.cat([x.to(dtype) for x in flat])], [torch.cat(allowed)]
    found = [select_reference(x, a, n, largest=largest, use_abs=use_abs) for x, a, n in zip(flat, allowed, k)]
    thresholds = torch.full([segments], float("nan"), dtype=dtype, device=device)
    counts = torch.zeros([segments], dtype=torch.int64, device=device)
    masks = [mask for mask, _, _ in found]
    if found:
        thresholds = torch.stack([threshold.to(dtype) for _, threshold, _ in found])
        counts = torch.stack([count for _, _, count in found])
    if global_ and scores:
        masks = [part.clone() for part in masks[0].split([x.numel() for x in scores])]
    return [mask.view(x.shape) for mask, x in zip(masks, scores)], thresholds, counts


def common_dtype(scores: list[Tensor]) -> torch.dtype:
    """What the dtypes of a list promote to; of an empty one the default."""
    dtype = scores[0].dtype if scores else torch.get_default_dtype()
    for x in scores:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype


@reference("topk_mask.int_k")
@reference("topk_mask")
def topk_mask_reference(scores, k, *, largest=True, use_abs=True, global_=False, eligible=None, packed=False, hint=None):
    masks, thresholds, counts = _select("topk_mask", scores, k, largest=largest, use_abs=use_abs, global_=global_, eligible=eligible)
    return [pack_mask_reference(mask) for mask in masks] if packed else masks, thresholds, counts


@reference("select_threshold.int_k")
@reference("select_threshold")
def select_threshold_reference(scores, k, *, largest=True, use_abs=True, global_=False, eligible=None, hint=None):
    return _select("select_threshold", scores, k, largest=largest, use_abs=use_abs, global_=global_, eligible=eligible)[1:]


@fake("select_threshold.int_k")
@fake("select_threshold")
def _fake_thresholds(scores, k, *, largest=True, use_abs=True, global_=False, eligible=None, hint=None):
    segments, device = 1 if global_ else len(scores), scores[0].device if scores else None
    return torch.empty([segments], dtype=common_dtype(scores), device=device), torch.empty([segments], dtype=torch.int64, device=device)


@fake("topk_mask.int_k")
@fake("topk_mask")
def _(scores, k, *, largest=True, use_abs=True, global_=False, eligible=None, packed=False, hint=None):
    dtype = torch.int32 if packed else torch.bool
    masks = [torch.empty([packed_words(x.numel())] if packed else x.shape, dtype=dtype, device=x.device) for x in scores]
    return masks, *_fake_thresholds(scores, k, global_=global_)
