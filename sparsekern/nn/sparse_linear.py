"""SparseLinear: nn.Linear whose weight exists only as its nonzeros."""
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from sparsekern import ops
from sparsekern.nn.sparse_init import initial_bias, initial_values, random_pattern, wanted_nnz
from sparsekern.nn.sparse_weight import SparseWeight, masked_values


class SparseLinear(SparseWeight):
    """`y = x W^T + b` with a sparse W: neither the dense weight nor its gradient ever exists (with backend="csr").

    Memory in training, fp32 with momentum: 24 bytes per nonzero and 8 per row and column. Usual constructors are `from_shape` and
    `from_dense`; see SparseWeight for `backend`, `replace_topology` and what `state_dict` holds.

    Args:
        in_features, out_features: as in nn.Linear.
        crow, col, values: int32 or int64 [out + 1], int32 [nnz], floating [nnz]: the weight in CSR. bias: [out] or None.
    Shape: x [..., in_features] -> [..., out_features], in x's dtype. `values` has that dtype, or float32 beside a half-precision x.
    """
    inference_only = False                                      # set by `for_inference`

    def __init__(self, in_features: int, out_features: int, crow: Tensor, col: Tensor, values: Tensor, bias: Tensor | None = None, *,
                 backend: str = "csr"):
        self.in_features, self.out_features = in_features, out_features
        super().__init__(out_features, in_features, crow, col, values, bias, backend)

    @classmethod
    def from_shape(cls, in_features: int, out_features: int, *, sparsity: float | None = None, nnz: int | None = None, seed: int = 0,
                   bias: bool = True, device=None, dtype: torch.dtype | None = None, backend: str = "csr") -> "SparseLinear":
        """A fresh layer with exactly round((1 - sparsity) * out * in) weights, or `nnz`, at random places; its dense weight is never made.

        Values and biases come from U(-1, 1) * sqrt(3 / fan-in), with the row's own number of weights as fan-in. Equal seeds give equal
        layers on every device.

        Raises:
            ValueError: a sparsity outside [0, 1), or one that leaves no weight.
        """
        count = wanted_nnz(cls.__name__, out_features, in_features, sparsity, nnz)
        generator, dtype = torch.Generator().manual_seed(seed), dtype or torch.get_default_dtype()
        crow, col = random_pattern(out_features, in_features, count, generator)
        values = initial_values(crow, count, generator, dtype)
        return cls(in_features, out_features, crow.to(device), col.to(device), values.to(device),
                   initial_bias(crow, generator, dtype).to(device) if bias else None, backend=backend)

    @classmethod
    @torch.no_grad()
    def from_dense(cls, module: nn.Linear, mask: Tensor, *, backend: str = "csr") -> "SparseLinear":
        """The weights of `module` where `mask` (bool, of the weight's shape) is on, and its bias, as copies.

        Raises:
            ValueError: a mask of another shape. TypeError: a module that is no nn.Linear or computes something else.
        """
        if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
            raise TypeError(f"{cls.__name__}.from_dense: expected an nn.Linear with its own forward, got {type(module).__name__}")
        crow, col, values = masked_values(cls.__name__, module.weight, mask)
        made = cls(module.in_features, module.out_features, crow, col, values, None if module.bias is None else module.bias.clone(),
                   backend=backend)
        return made.train(module.training)

    @torch.no_grad()
    def to_dense(self) -> nn.Linear:
        """An nn.Linear with the same weights, zeros in between."""
        dense = skip_init(nn.Linear, self.in_features, self.out_features, self.bias is not None, device=self.values.device,
                          dtype=self.values.dtype)
        dense.weight.copy_(self.dense_weight())
        if self.bias is not None:
            dense.bias.copy_(self.bias)
        return dense.train(self.training)

    def for_inference(self) -> "SparseLinear":
        """Drop the transposed pattern, 8 bytes a nonzero, which only gradients want: one of the input is found at a higher cost from now on."""
        self.inference_only = True
        self._derive()
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self._backend == "csr" and self.inference_only:
            y = ops.csr_spmm(self.crow, self.col, self.values, x.reshape(-1, x.shape[-1]).t(), self.rows, self.cols, bias=self.bias)
            return y.t().contiguous().view(*x.shape[:-1], self.rows)
        if self._backend == "csr":
            return ops.csr_linear(x, self.crow, self.col, self.values, self.crow_t, self.row_t, self.perm, self.bias, self.rows)
        return F.linear(x, *self._dense_operands(x))

    def _plan(self) -> dict[str, Tensor]:
        if self.inference_only:
            return {}
        _, crow_t, row_t, perm = ops.csr_plan(self.crow, self.col, self.rows, self.cols)
        return {"crow_t": crow_t, "row_t": row_t, "perm": perm}

    def extra_repr(self) -> str:
        return (f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, nnz={self.nnz}, "
                f"sparsity={self.sparsity:.4g}, backend={self.backend!r}")
