"""Several tasks' gradients without their conflicts, as sequential PCGrad gives them, in two passes over memory instead of T squared."""
import torch
from torch import Tensor

from sparsekern.ops._register import define, fake, reference

define("task_gram(Tensor[] grads, int num_tasks) -> Tensor")
define("pcgrad_combine(Tensor[] grads, int num_tasks, Tensor order, *, str reduction=\"sum\") -> Tensor[]")

MAX_TASKS = 64
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@torch.no_grad()
def task_gram(grads: list[Tensor], num_tasks: int) -> Tensor:
    """All products <g_i, g_j> of the tasks' gradients, each over the whole list.

    Args:
        grads: task after task: grads[t * L + i] is the gradient of task t for parameter i. float32, bfloat16, float16 or float64 (CPU);
            the tasks agree in shape and dtype.
        num_tasks: T, 1 to 64.
    Returns: [T, T], symmetric; float32, or float64 where a gradient is.
    Raises:
        ValueError: a list that T does not divide, a gradient of another shape or device.
        TypeError: an unsupported dtype, or tasks of different ones.
    Source: bytes per fp32 element: 4 T.
    """
    return torch.ops.sparsekern.task_gram(grads, num_tasks) if grads else torch.zeros(num_tasks, num_tasks)


@torch.no_grad()
def pcgrad_combine(grads: list[Tensor], num_tasks: int, order: Tensor, *, reduction: str = "sum") -> list[Tensor]:
    """The sum (or mean) over the tasks of their projected gradients.

    Task i visits the tasks order[i, 0], order[i, 1], ... With g its gradient so far, and g_j the original gradient of the visited task,
    d = <g, g_j> and q = <g_j, g_j> over the whole list: where d < 0 and q > 0, g -= (d / q) * g_j. A visit whose d or q is NaN or
    infinite changes nothing.

    Args:
        grads, num_tasks: as in `task_gram`.
        order: int64 [T, T - 1] on the device of the gradients; row i names the other tasks, for instance
            `torch.stack([torch.randperm(T - 1) for _ in range(T)])`, plus 1 from i on. On a GPU, where it is not read back, what names no
            other task is passed over.
        reduction: "sum" or "mean" over the tasks.
    Returns: one tensor per parameter, of its dtype.
    Raises:
        ValueError: as `task_gram`; an order of another shape, or on the CPU one that names a task itself or none.
        TypeError: as `task_gram`; an order that is not int64.
    Source: PCGrad (Yu et al., 2020). Every projected gradient is a combination of the originals, so their products tell all: bytes per
    fp32 element: 4 T, then 4 T + 4.
    """
    return torch.ops.sparsekern.pcgrad_combine(grads, num_tasks, order, reduction=reduction) if grads else []


def check_tasks(op: str, grads: list[Tensor], num_tasks: int) -> int:
    """The checks of the compiled kernels, in their words; the number of tensors per task."""
    if not 1 <= num_tasks <= MAX_TASKS:
        raise ValueError(f"{op}: num_tasks: expected 1 to {MAX_TASKS}, got {num_tasks}")
    if len(grads) % num_tasks:
        raise ValueError(f"{op}: grads: expected the same number of tensors for each of {num_tasks} tasks, one task after the other, got "
                         f"{len(grads)} in all")
    tensors = len(grads) // num_tasks
    for k, g in enumerate(grads):
        first = grads[k % tensors]
        if g.dtype not in FLOATS:
            raise TypeError(f"{op}: grads[{k}]: expected float32, bfloat16, float16 or float64, got {g.dtype}")
        if g.shape != first.shape:
            raise ValueError(f"{op}: grads[{k}]: expected shape {list(first.shape)}, got {list(g.shape)}")
        if g.dtype != first.dtype:
            raise TypeError(f"{op}: grads[{k}]: expected {first.dtype} like grads[{k % tensors}], got {g.dtype}")
    return tensors


def check_order(op: str, order: Tensor, num_tasks: int, device: torch.device) -> None:
    if order.dtype != torch.int64:
        raise TypeError(f"{op}: order: expected int64, got {order.dtype}")
    if order.shape != (num_tasks, num_tasks - 1):
        raise ValueError(f"{op}: order: expected shape [{num_tasks}, {num_tasks - 1}], got {list(order.shape)}")
    if order.device != device:
        raise ValueError(f"{op}: order: expected a tensor on {device} like the gradients, got {order.device}; move it with .to()")
    if order.device.type == "cpu":
        for i, row in enumerate(order.tolist()):
            for j in row:
                if not 0 <= j < num_tasks or j == i:
                    raise ValueError(f"{op}: order: expected row {i} to name the other tasks of {num_tasks}, got {j}")


def _by_tensor(grads: list[Tensor], tensors: int) -> list[Tensor]:
    """Per parameter [T, elements] in float64."""
    return [torch.stack([g.double().flatten() for g in grads[i::tensors]]) for i in range(tensors)]


@reference("task_gram")
def task_gram_reference(grads, num_tasks):
    tensors = check_tasks("task_gram", grads, num_tasks)
    dtype = torch.float64 if any(g.dtype == torch.float64 for g in grads) else torch.float32
    upper = sum(rows @ rows.t() for rows in _by_tensor(grads, tensors)).triu()
    return (upper + upper.triu(1).t()).to(dtype)


@reference("pcgrad_combine")
def pcgrad_combine_reference(grads, num_tasks, order, reduction="sum"):
    op = "pcgrad_combine"
    tensors = check_tasks(op, grads, num_tasks)
    check_order(op, order, num_tasks, grads[0].device)
    if reduction not in ("sum", "mean"):
        raise ValueError(f'{op}: reduction: expected "sum" or "mean", got "{reduction}"')
    originals = _by_tensor(grads, tensors)
    total = [torch.zeros_like(rows[0]) for rows in originals]
    for i in range(num_tasks):
        mine = [rows[i] for rows in originals]
        for visited in order[i].unbind():                               # 0-d: nothing is read back
            j = visited.clamp(0, num_tasks - 1)
            theirs = [rows.index_select(0, j.view(1))[0] for rows in originals]
            d, q = sum((a * b).sum() for a, b in zip(mine, theirs)), sum((b * b).sum() for b in theirs)
            applied = (j == visited) & (j != i) & (d < 0) & (q > 0) & d.isfinite() & q.isfinite()
            mine = [torch.where(applied, a - d / q * b, a) for a, b in zip(mine, theirs)]
        total = [sums + a for sums, a in zip(total, mine)]
    if reduction == "mean":
        total = [sums / num_tasks for sums in total]
    return [sums.view(g.shape).to(g.dtype) for sums, g in zip(total, grads)]


@fake("task_gram")
def task_gram_fake(grads, num_tasks):
    dtype = torch.float64 if any(g.dtype == torch.float64 for g in grads) else torch.float32
    return grads[0].new_empty(num_tasks, num_tasks, dtype=dtype)


@fake("pcgrad_combine")
def pcgrad_combine_fake(grads, num_tasks, order, reduction="sum"):
    return [torch.empty_like(g) for g in grads[:len(grads) // num_tasks]]
