"""Conflict projection: take from one gradient what points against another one, alone or in the same pass as the SGD step."""
import torch
from torch import Tensor

from sparsekern.ops._register import define, fake, reference, uses_triton
from sparsekern.ops.masked_sgd import check_update_lists, dense_mask, masked_sgd_reference, no_mask

define("project_conflict_(Tensor(a!)[] g_i, Tensor[] g_j, *, Tensor[]? masks=None, bool per_tensor=False, float eps=0.0, "
       "Tensor(b!)? stats=None) -> ()")
_UPDATE = ("(Tensor(a!)[] params, Tensor[] g_i, Tensor[] g_j, Tensor(b!)[] momentum_buffers, Tensor[] masks, *, float weight_decay, "
           "float momentum, {lr}, float dampening, bool nesterov, bool maximize, bool is_first_step, "
           "str outside=\"keep\", bool invert=False, bool assume_clean=False, Tensor? grad_scale=None, Tensor? found_inf=None, "
           "bool per_tensor=False, float eps=0.0, Tensor(c!)? stats=None) -> ()")
define("project_conflict_sgd_" + _UPDATE.format(lr="float lr"))
define("project_conflict_sgd_.tensor_lr" + _UPDATE.format(lr="Tensor lr"))


@torch.no_grad()
def project_conflict_(g_i: list[Tensor], g_j: list[Tensor | None], *, masks: list[Tensor | None] | None = None, per_tensor: bool = False,
                      eps: float = 0.0, stats: Tensor | None = None) -> None:
    """Where `g_i` and `g_j` point against each other, remove from `g_i` its part along `g_j`, in place.

    With d = <g_i, g_j> and q = <g_j, g_j> over the active elements: if d < 0 and q > eps, g_i -= (d / q) * g_j there; otherwise
    `g_i` keeps its bits. Nothing happens when d or q is NaN or infinite. The decision is taken on the device.

    Args:
        g_i: tensors of any shape, float32, bfloat16, float16 or float64 (CPU), dense in memory. Written in place.
        g_j: like `g_i`. An entry that is None (or empty) leaves its index out of the products and unprojected.
        masks: per tensor a bool tensor of its shape, packed int32 words (`pack_mask`), or None (or an empty tensor): dense.
        per_tensor: decide for every list index by itself, instead of once for the whole list.
        eps: >= 0, the least |g_j|^2 to act on; `math.inf` measures without acting.
        stats: [1, 4] float32, or [len(g_i), 4] with `per_tensor`; overwritten with d, q, the cosine (0 beside a zero gradient) and
            whether the projection was applied (1 or 0).
    Raises:
        ValueError: lists of different lengths, a mask or gradient of another shape, a `g_i` that is not dense, a negative eps.
        TypeError: an unsupported dtype, or `g_j` of another dtype than `g_i`.
    Source: PCGrad (Yu et al., 2020) within a mask. Bytes per fp32 element: 8 + masks, 20 + twice the masks with a conflict.
    """
    _check_eps("project_conflict_", eps)
    if not g_i:
        _clear(stats)
        return
    masks = None if masks is None else _dense_for_none(masks, g_i)
    torch.ops.sparsekern.project_conflict_(g_i, _dense_for_none(g_j, g_i), masks=masks, per_tensor=per_tensor, eps=eps, stats=stats)


@torch.no_grad()
def project_conflict_sgd_(params: list[Tensor], g_i: list[Tensor], g_j: list[Tensor | None], momentum_buffers: list[Tensor],
                          masks: list[Tensor | None], *, lr: float | Tensor, weight_decay: float = 0.0, momentum: float = 0.0,
                          dampening: float = 0.0, nesterov: bool = False, maximize: bool = False, is_first_step: bool = False,
                          outside: str = "keep", invert: bool = False, assume_clean: bool = False, grad_scale: Tensor | None = None,
                          found_inf: Tensor | None = None, per_tensor: bool = False, eps: float = 0.0, stats: Tensor | None = None) -> None:
    """`project_conflict_` and `masked_sgd_` in one: the step is taken with the projected gradient, no gradient is written.

    Since `g_i` keeps its values, it can be handed over as the next step's `g_j` without a copy.

    Args:
        params, momentum_buffers, masks, lr ... found_inf: as in `masked_sgd_`; `invert` turns the masks around for the products too.
        g_i: this step's gradients, like `params`; float32 params also take bfloat16 or float16 gradients.
        g_j: the gradients to get along with, of the dtype of `g_i`. An entry that is None (or empty) leaves its index out of the
            products; its param takes the plain step.
        per_tensor, eps, stats: as in `project_conflict_`. The products are those of the gradients as they are, before `grad_scale`;
            where `found_inf` is 1 nothing changes and stats says that nothing was applied.
    Raises:
        ValueError, TypeError: as `masked_sgd_` and `project_conflict_` do.
    Source: PCGrad (Yu et al., 2020) and torch.optim.SGD within a mask. Bytes per fp32 element: 8 + 20, with a conflict 8 + 24, and
    twice the masks.
    """
    if outside not in ("keep", "zero"):
        raise ValueError(f'project_conflict_sgd_: outside: expected "keep" or "zero", got {outside!r}')
    _check_eps("project_conflict_sgd_", eps)
    if not params:
        _clear(stats)
        return
    op = torch.ops.sparsekern.project_conflict_sgd_
    (op.tensor_lr if isinstance(lr, Tensor) else op.default)(
        params, g_i, _dense_for_none(g_j, params), momentum_buffers, _dense_for_none(masks, params), weight_decay=weight_decay,
        momentum=momentum, lr=lr, dampening=dampening, nesterov=nesterov, maximize=maximize, is_first_step=is_first_step, outside=outside,
        invert=invert, assume_clean=assume_clean, grad_scale=grad_scale, found_inf=found_inf, per_tensor=per_tensor, eps=eps, stats=stats)


def _check_eps(op: str, eps: float) -> None:
    if not eps >= 0:
        raise ValueError(f"{op}: eps: expected a number >= 0 (math.inf measures without projecting), got {eps}")


def _dense_for_none(items: list[Tensor | None], like: list[Tensor]) -> list[Tensor]:
    return [no_mask(like[0].device) if item is None else item for item in items]


def _clear(stats: Tensor | None) -> None:
    if stats is not None:
        stats.zero_()


def check_pairs(op: str, g_i, g_j, masks, per_tensor, stats) -> None:
    """The checks of the compiled kernels, in their words, for the implementations written in Python."""
    if len(g_j) != len(g_i):
        raise ValueError(f"{op}: g_j: expected a list of {len(g_i)} tensors like the first list, got {len(g_j)}")
    check_update_lists(op, g_i, g_i, [], [no_mask(g_i[0].device)] * len(g_i) if masks is None else masks, 0, "g_i")
    for i, (a, b) in enumerate(zip(g_i, g_j)):
        if b.numel() == 0:
            continue
        if a.shape != b.shape:
            raise ValueError(f"{op}: g_j[{i}]: expected shape {list(a.shape)}, got {list(b.shape)}")
        if a.dtype != b.dtype:
            raise TypeError(f"{op}: g_j[{i}]: expected {a.dtype} like g_i, got {b.dtype}")
    rows = len(g_i) if per_tensor else 1
    if stats is not None and stats.dtype != torch.float32:
        raise TypeError(f"{op}: stats: expected float32, got {stats.dtype}")
    if stats is not None and (stats.shape != (rows, 4) or not stats.is_contiguous()):
        raise ValueError(f"{op}: stats: expected a contiguous [{rows}, 4] tensor, got shape {list(stats.shape)} with strides "
                         f"{list(stats.stride())}")


def _coefficients(g_i, g_j, inside, per_tensor, eps, stats, found_inf) -> tuple[Tensor, Tensor]:
    """[S] float64 d / q and [S] bool applied, with stats written; nothing is read back to the host."""
    sums = []
    for a, b, active in zip(g_i, g_j, inside):
        a, b = (torch.where(active, x.double(), 0.0) if b.numel() else a.new_zeros(1).double() for x in (a, b if b.numel() else a))
        sums.append(torch.stack([(a * b).sum(), (b * b).sum(), (a * a).sum()]))
    d, q, n = (torch.stack(sums) if per_tensor else torch.stack(sums).sum(0, keepdim=True)).unbind(1)
    applied = (d < 0) & (q > eps) & d.isfinite() & q.isfinite()
    if found_inf is not None:
        applied = applied & (found_inf.reshape(()) == 0)
    if stats is not None:
        cosine = torch.where((q == 0) | (n == 0), 0.0, d / (q.sqrt() * n.sqrt()))
        stats.copy_(torch.stack([d, q, cosine, applied.double()], 1))
    return torch.where(applied, d / q, 0.0), applied


@reference("project_conflict_")
def project_conflict_reference(g_i, g_j, masks=None, per_tensor=False, eps=0.0, stats=None):
    check_pairs("project_conflict_", g_i, g_j, masks, per_tensor, stats)
    inside = [torch.ones_like(a, dtype=torch.bool) if masks is None else dense_mask(masks[i], a) for i, a in enumerate(g_i)]
    _project(g_i, g_j, inside, per_tensor, eps, stats, None)


def _project(g_i, g_j, inside, per_tensor, eps, stats, found_inf):
    coefficients, applied = _coefficients(g_i, g_j, inside, per_tensor, eps, stats, found_inf)
    for i, (a, b, active) in enumerate(zip(g_i, g_j, inside)):
        if b.numel():
            segment = i if per_tensor else 0
            arithmetic = torch.float64 if a.dtype == torch.float64 else torch.float32
            projected = a.to(arithmetic) - coefficients[segment].to(arithmetic) * b.to(arithmetic)
            a.copy_(torch.where(active & applied[segment], projected.to(a.dtype), a))


@reference("project_conflict_sgd_.tensor_lr")
@reference("project_conflict_sgd_")
def project_conflict_sgd_reference(params, g_i, g_j, momentum_buffers, masks, *, grad_scale=None, found_inf=None, per_tensor=False, eps=0.0,
                                   stats=None, outside="keep", invert=False, assume_clean=False, **scalars):
    op = "project_conflict_sgd_"
    check_update_lists(op, params, g_i, momentum_buffers, masks, scalars["momentum"], "g_i")
    check_pairs(op, g_i, g_j, masks, per_tensor, stats)
    inside = [dense_mask(mask, param) ^ invert for mask, param in zip(masks, params)]
    # Half-precision gradients are projected in fp32, as the kernels do: the difference is not rounded on its way to the step.
    projected = [a.to(torch.promote_types(a.dtype, torch.float32)) if b.numel() else a for a, b in zip(g_i, g_j)]
    projected = [p.clone() if p is a else p for p, a in zip(projected, g_i)]
    others = [b.to(p.dtype) if b.numel() else b for b, p in zip(g_j, projected)]
    _project(projected, others, inside, per_tensor, eps, stats, found_inf)
    masked_sgd_reference(params, projected, momentum_buffers, masks, grad_scale=grad_scale, found_inf=found_inf, outside=outside,
                         invert=invert, assume_clean=assume_clean, **scalars)


def _nothing(*arguments, **keywords):
    return None


for _name in ("project_conflict_", "project_conflict_sgd_", "project_conflict_sgd_.tensor_lr"):
    fake(_name)(_nothing)
    uses_triton(_name, "project_conflict")
