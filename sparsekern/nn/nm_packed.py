"""What packed N:M layers share: a weight stored as what is kept of it and where, for inference."""
import torch
from torch import Tensor

from sparsekern import ops
from sparsekern.nn.choose import Choice, choose_backend
from sparsekern.nn.nm_weight import NMLayer, NMWeight, as_matrix, check_groups, set_derived
from sparsekern.ops.nm_spmm import nm_columns


class PackedNM(NMLayer):
    """An N:M weight in packed form, for inference: nothing here is trained. Base of PackedNMLinear and PackedNMConv2d.

    `state_dict` holds `values`, `index` and, if there is one, `bias`. Gradients reach the input only.

    Args:
        rows, cols: size of the weight as a matrix; for a convolution the columns are [kh, kw, in].
        n, m: n are kept of every m columns. values: [rows, cols / m * n], ascending position within a group.
        index: uint8 of that shape, the positions within the group, as from `ops.nm_pack`. bias: [rows] or None.
        backend: "packed" computes with what is stored (`ops.nm_spmm`). "dense" also holds the dense weight, in memory only, for the
            layers where the dense product is the quicker one. "sp24" (PackedNMLinear) and "csr" (PackedNMConv2d): see there.
    Raises:
        ValueError: sizes that disagree, positions beyond the group, twice in a group or out of order, an unknown backend.
    """
    backends = ("packed", "dense")
    inference_only = True
    values: Tensor
    index: Tensor
    bias: Tensor | None

    def __init__(self, rows: int, cols: int, n: int, m: int, values: Tensor, index: Tensor, bias: Tensor | None = None,
                 backend: str = "packed"):
        super().__init__()
        check_groups(type(self).__name__, cols, n, m)
        self.rows, self.cols, self.n, self.m = rows, cols, n, m
        self._check(values, index, bias, type(self).__name__)
        self.register_buffer("values", values.detach().contiguous())
        self.register_buffer("index", index.contiguous())
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.choice: Choice | None = None
        self.backend = backend

    @property
    def nnz(self) -> int:
        """Number of weights that are stored."""
        return self.values.numel()

    def choose(self, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Choice:
        """Measure every product on an input of `shape` and take the quickest; `choice` keeps the times and the reason."""
        self.choice = choose_backend(self, shape, dtype)
        self.backend = self.choice.backend
        return self.choice

    def mask(self) -> Tensor:
        """bool [rows, cols]: the stored positions."""
        return torch.zeros(self.rows, self.cols, dtype=torch.bool, device=self.index.device).scatter_(1, self._columns(), True)

    def dense_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight as a dense [rows, cols] matrix."""
        values = self.values if dtype is None else self.values.to(dtype)
        return values.new_zeros(self.rows, self.cols).scatter_(1, self._columns(), values)

    def _columns(self) -> Tensor:
        return nm_columns(self.index, self.n, self.m).long()

    def _product(self, b: Tensor) -> Tensor:
        """[rows, N] for b [cols, N], in the type that autocast asks for."""
        values, bias, kind = self.values, self.bias, b.device.type
        if torch.is_autocast_enabled(kind) and b.dtype != torch.float64:
            b = b.to(torch.get_autocast_dtype(kind))
            # values of the other half type come as float32, which the product takes beside any
            values, bias = (t.float() if t is not None and t.dtype.itemsize == 2 and t.dtype != b.dtype else t for t in (values, bias))
        return ops.nm_spmm(values, self.index, b, self.n, self.m, self.cols, bias=bias)

    def _beside(self, x: Tensor, *tensors: Tensor | None) -> list[Tensor | None]:
        """float32 tensors in x's type where that is a half one, for the products that want one type; autocast sees to itself."""
        narrow = x.dtype.itemsize == 2 and self.values.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)
        return [t.to(x.dtype) if narrow and t is not None else t for t in tensors]

    def _derived(self) -> dict[str, Tensor]:
        """The unsaved buffers that the backend wants."""
        return {"dense": self.dense_weight()} if self._backend == "dense" else {}

    @torch.no_grad()
    def _derive(self) -> None:
        set_derived(self, self._derived())

    def _check(self, values, index, bias, where: str) -> None:
        shape = (self.rows, self.cols // self.m * self.n)
        if not isinstance(values, Tensor) or not values.is_floating_point() or values.shape != shape:
            got = f"{values.dtype} {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(f"{where}: values: expected floating-point numbers of shape {list(shape)}, got {got}")
        if not isinstance(index, Tensor) or index.dtype != torch.uint8 or index.shape != shape:
            got = f"{index.dtype} {list(index.shape)}" if isinstance(index, Tensor) else type(index).__name__
            raise ValueError(f"{where}: index: expected uint8 positions of shape {list(shape)}, got {got}")
        if bias is not None and (not isinstance(bias, Tensor) or bias.shape != (self.rows,)):
            raise ValueError(f"{where}: bias: expected shape [{self.rows}], got {list(getattr(bias, 'shape', ()))}")
        groups = index.reshape(self.rows, self.cols // self.m, self.n).int()
        wrong = (groups >= self.m).any(-1) | (groups.diff(dim=-1) <= 0).any(-1)
        if wrong.any():
            row, group = wrong.nonzero()[0].tolist()
            raise ValueError(f"{where}: index: expected {self.n} rising positions below {self.m} in every group, got "
                             f"{groups[row, group].tolist()} in row {row}, group {group}")

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        given = [state_dict.get(prefix + name, getattr(self, name)) for name in ("values", "index", "bias")]
        self._check(*given, f"{prefix}*" if prefix else "state")
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._derive()


@torch.no_grad()
def packed_parts(layer: NMWeight) -> tuple[Tensor, Tensor]:
    """values and index of a layer's kept weights, zeros among them: what was masked in comes out, bit for bit."""
    weight, mask = as_matrix(layer.weight.detach()), as_matrix(layer.current_mask())
    columns = ops.csr_from_mask(mask, nnz=layer.nnz)[1].view(weight.shape[0], weight.shape[1] // layer.m * layer.n)
    return weight.gather(1, columns.long()), (columns % layer.m).to(torch.uint8)
