"""What the sparse layers share: a weight that exists only as its nonzeros, and the life of its topology."""
import torch
from torch import Tensor, nn

from sparsekern import ops

BACKENDS = ("csr", "dense")


class SparseWeight(nn.Module):
    """A module whose weight is a `[rows, cols]` matrix in CSR form. Base of SparseLinear and SparseConv2d.

    The `state_dict` holds plain tensors: `values` (the parameter), `crow`, `col` and, if there is one, `bias`. What is derived from the
    topology lives in buffers that are not saved. `sparsekern.ops` check the pattern themselves, so no state can make them read elsewhere.

    Args:
        rows, cols: size of the weight as a matrix.
        crow: int32 or int64 [rows + 1] row pointers. col: int32 [nnz], sorted and distinct within a row.
        values: [nnz] float32, bfloat16, float16 or float64. bias: [rows] or None. The tensors become the module's own.
        backend: "csr" computes with the nonzeros. "dense" keeps the same storage and forms the dense weight for the time of each
            product, which is quicker where the weight is small or not very sparse; the gradient that reaches `values` has nnz entries
            all the same, but a dense weight and its dense gradient exist for a moment.
    Raises:
        ValueError: a pattern that is not sound (its first fault is named), sizes that disagree, an unknown backend.
    """
    backends = BACKENDS
    values: nn.Parameter
    crow: Tensor
    col: Tensor

    def __init__(self, rows: int, cols: int, crow: Tensor, col: Tensor, values: Tensor, bias: Tensor | None, backend: str = "csr"):
        super().__init__()
        self.rows, self.cols = rows, cols
        self._check(crow, col, values, bias)
        self.values = nn.Parameter(values.detach().contiguous())
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach()))
        self.register_buffer("crow", crow.contiguous())
        self.register_buffer("col", col.contiguous())
        self.backend = backend

    @property
    def nnz(self) -> int:
        """Number of weights that exist."""
        return self.values.numel()

    @property
    def sparsity(self) -> float:
        """Fraction of zeros."""
        return 1.0 - self.nnz / max(1, self.rows * self.cols)

    @property
    def backend(self) -> str:
        """ "csr" or "dense"; set it at any time."""
        return self._backend

    @backend.setter
    def backend(self, name: str) -> None:
        if name not in BACKENDS:
            raise ValueError(f'{type(self).__name__}: backend: expected "csr" or "dense", got {name!r}')
        self._backend = name
        self._derive()

    @torch.no_grad()
    def replace_topology(self, crow: Tensor, col: Tensor, values: Tensor) -> None:
        """Give the weight another pattern with its values; tensors of unchanged size are written in place, the parameter stays the object it is.

        The caller sees to what belongs to the old positions: the gradient (dropped here if nnz changes) and the optimizer's state.

        Raises:
            ValueError: an unsound pattern or sizes that disagree; nothing has changed then.
        """
        self._check(crow, col, values, self.bias)
        self._resize(values.numel())
        self.values.copy_(values)
        for name, tensor in (("crow", crow), ("col", col)):
            self._put(name, tensor, persistent=True)
        self._derive()

    def dense_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight as a dense [rows, cols] tensor, differentiable in `values`, whose gradient has nnz entries."""
        values = self.values if dtype is None else self.values.to(dtype)
        places = self.flat if self._backend == "dense" else self._places()
        return values.new_zeros(self.rows * self.cols).index_copy(0, places, values).view(self.rows, self.cols)

    def _dense_operands(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weight and bias for a dense product with `x`: under autocast, or beside a half-precision x, in the type that it computes in."""
        kind, dtype = x.device.type, self.values.dtype
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind) if x.dtype != torch.float64 else dtype
        elif x.dtype in (torch.bfloat16, torch.float16) and dtype == torch.float32:
            dtype = x.dtype
        return self.dense_weight(dtype), None if self.bias is None else self.bias.to(dtype)

    # What is derived from the topology.

    def _plan(self) -> dict[str, Tensor]:
        """The buffers that the CSR products of a subclass want."""
        return {}

    def _places(self) -> Tensor:
        """int64 [nnz] flat positions of the nonzeros."""
        rows = torch.arange(self.rows, device=self.col.device)
        return torch.repeat_interleave(rows * self.cols, self.crow.diff(), output_size=self.nnz) + self.col

    def _derive(self) -> None:
        wanted = self._plan() if self._backend == "csr" else {"flat": self._places()}
        for name in [name for name in self._non_persistent_buffers_set if name not in wanted]:
            delattr(self, name)
        for name, tensor in wanted.items():
            self._put(name, tensor, persistent=False)

    def _put(self, name: str, tensor: Tensor, *, persistent: bool) -> None:
        """In place where nothing but the content changes: compiled graphs that know the address go on."""
        old = self._buffers.get(name)
        if old is not None and old.shape == tensor.shape and old.dtype == tensor.dtype and old.device == tensor.device:
            old.copy_(tensor)
        else:
            self.register_buffer(name, tensor, persistent=persistent)

    def _resize(self, nnz: int) -> None:
        """Make room for `nnz` values in the same parameter."""
        if nnz != self.nnz:
            data = self.values.data
            self.values.grad = None
            # A graph of the last step that is still alive keeps the node that accumulates gradients of the old size, and the next
            # forward would use it again; a change of type is what makes autograd forget it.
            self.values.data = data.new_empty(0, dtype=torch.float64 if data.dtype != torch.float64 else torch.float32)
            self.values.data = data.new_empty(nnz)

    # Soundness.

    def _check(self, crow, col, values, bias, where: str = "") -> None:
        """ValueError for anything that is not a sound weight of this size; reads nothing out of bounds whatever it is given."""
        name = where or type(self).__name__
        for key, tensor in (("crow", crow), ("col", col), ("values", values)):
            if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
                raise ValueError(f"{name}: {key}: expected a tensor, got {type(tensor).__name__}")
        if values.dim() != 1 or not values.is_floating_point() or values.shape != col.shape:
            raise ValueError(f"{name}: values: expected one floating-point number per column index, {list(col.shape)}, "
                             f"got {values.dtype} {list(values.shape)}")
        if bias is not None and bias.shape != (self.rows,):
            raise ValueError(f"{name}: bias: expected shape [{self.rows}], got {list(bias.shape)}")
        try:
            ops.check_csr(crow, col, self.rows, self.cols, op=name)
        except TypeError as error:
            raise ValueError(f"{name}: {error}") from error

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs):
        """Take another topology, also one with another number of nonzeros, after it was found sound."""
        keys = [prefix + name for name in ("crow", "col", "values")]
        given = [state_dict.get(key) for key in keys]
        if any(tensor is None for tensor in given):     # the three belong together: without one of them none is taken
            rest = {key: value for key, value in state_dict.items() if key not in keys}
            super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
            return
        crow, col, values = given
        self._check(crow, col, values, state_dict.get(prefix + "bias") if self.bias is not None else None, f"{prefix}*" if prefix else "state")
        self._resize(values.numel())
        for name, tensor in (("crow", crow), ("col", col)):
            own = self._buffers[name]
            if own.shape != tensor.shape or own.dtype != tensor.dtype:
                self._buffers[name] = torch.empty_like(tensor, device=own.device)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        self._derive()


def masked_values(where: str, weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """crow, col, values of a dense weight under a bool mask of its shape, both flattened to [rows, -1]."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != weight.shape:
        got = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"{where}.from_dense: mask: expected a bool tensor of the weight's shape {list(weight.shape)}, got {got}")
    return ops.csr_from_mask(mask.flatten(1), weight.detach().flatten(1))
