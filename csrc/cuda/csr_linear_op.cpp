// Checks and registration of csr_linear and its backward pass on CUDA: made of the products of csr_spmm and csr_sddmm, whose kernels take
// activations [batch, features] as their transposes, by strides only. Nothing here waits for the device.
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <tuple>

#include "common/csr_checks.h"
#include "cuda/csr_sddmm_op.h"
#include "cuda/csr_spmm_op.h"
#include "cuda/stream.h"

namespace sparsekern {
namespace {

void check_layer(const char* op, const at::Tensor& x, const at::Tensor& crow, const at::Tensor& col, const at::Tensor& val, const at::Tensor& crow_t,
                 const at::Tensor& row_t, const at::Tensor& perm, int64_t rows) {
  cuda::check_cuda(op, "x", x);
  TORCH_CHECK_VALUE(x.dim() == 2, op, ": x: expected two dimensions, got shape ", x.sizes());
  const int64_t cols = x.size(1), nnz = col.numel();
  check_pattern_shape(op, crow, col, rows, cols, x.device());
  check_pattern_shape(op, crow_t, row_t, cols, rows, x.device(), "crow_t", "row_t");
  check_position_count(op, "perm", perm, row_t.numel(), x.device());
  TORCH_CHECK_VALUE(row_t.numel() == nnz, op, ": row_t: expected ", nnz, " nonzeros like col, got ", row_t.numel());
  check_dense_operand(op, "x", x.t(), cols);
  check_values_beside(op, "val", val, x, nnz);
}

at::Tensor csr_linear_cuda(const at::Tensor& x, const at::Tensor& crow, const at::Tensor& col, const at::Tensor& val, const at::Tensor& crow_t,
                           const at::Tensor& row_t, const at::Tensor& perm, const std::optional<at::Tensor>& bias, int64_t rows) {
  constexpr const char* kOp = "csr_linear";
  check_layer(kOp, x, crow, col, val, crow_t, row_t, perm, rows);
  if (bias) check_values_beside(kOp, "bias", *bias, x, rows);
  const c10::DeviceGuard guard(x.device());
  const at::Tensor y = at::empty({x.size(0), rows}, x.options());
  spmm_into_cuda(kOp, crow, col, val, unit_strided_cuda(x).t(), std::nullopt, std::nullopt, bias, y.t());
  return y;
}

// Sums over the batch, in fp32 (fp64 of fp64) and rounded once; torch's reduction runs in a fixed order.
at::Tensor bias_gradient(const at::Tensor& grad_y, at::ScalarType type) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);  // it would widen grad_y first
  return at::sum(grad_y, 0, false, grad_y.scalar_type() == at::kDouble ? at::kDouble : at::kFloat).to(type);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> csr_linear_backward_cuda(const at::Tensor& x, const at::Tensor& grad_y, const at::Tensor& crow,
                                                                        const at::Tensor& col, const at::Tensor& val, const at::Tensor& crow_t,
                                                                        const at::Tensor& row_t, const at::Tensor& perm, bool need_x, bool need_val,
                                                                        bool need_bias) {
  constexpr const char* kOp = "csr_linear_backward";
  const int64_t rows = crow.numel() - 1;
  check_layer(kOp, x, crow, col, val, crow_t, row_t, perm, rows);
  TORCH_CHECK_TYPE(grad_y.scalar_type() == x.scalar_type(), kOp, ": grad_y: expected ", x.scalar_type(), " like x, got ", grad_y.scalar_type());
  TORCH_CHECK_VALUE(grad_y.dim() == 2 && grad_y.size(0) == x.size(0) && grad_y.size(1) == rows, kOp, ": grad_y: expected shape [", x.size(0), ", ",
                    rows, "], got ", grad_y.sizes());
  check_same_device(kOp, "grad_y", grad_y, x.device());
  const c10::DeviceGuard guard(x.device());
  const at::Tensor grad_x = at::empty(need_x ? x.sizes() : at::IntArrayRef{0}, x.options());
  const at::Tensor grad_val = at::empty({need_val ? val.numel() : 0}, val.options());
  const at::Tensor dy = unit_strided_cuda(grad_y).t();
  if (need_x) spmm_into_cuda(kOp, crow_t, row_t, val, dy, perm, std::nullopt, std::nullopt, grad_x.t());
  if (need_val) sddmm_into_cuda(kOp, crow, col, dy, x.t(), grad_val);
  return {grad_x, grad_val, need_bias ? bias_gradient(grad_y, val.scalar_type()) : at::empty({0}, val.options())};
}

}  // namespace

SK_CUDA_LIBRARY(m) {
  m.impl("csr_linear", &csr_linear_cuda);
  m.impl("csr_linear_backward", &csr_linear_backward_cuda);
}

}  // namespace sparsekern
