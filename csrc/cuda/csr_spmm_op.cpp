// Checks, choice of the algorithm and registration of csr_spmm and csr_spmm_t on CUDA. Nothing here waits for the device.
#include "cuda/csr_spmm_op.h"

#include <ATen/ops/empty.h>

#include <string>

#include "common/csr_checks.h"
#include "cuda/csr_cost.h"
#include "cuda/spmm_tensors.h"
#include "cuda/tf32.h"

namespace sparsekern {
namespace {

using cuda::SpmmAlgo;
using cuda::SpmmArgs;

// Nothing for "auto".
std::optional<SpmmAlgo> algo_of(const char* op, c10::string_view algo, at::ScalarType type) {
  TORCH_CHECK_VALUE(algo == "auto" || algo == "scalar" || algo == "staged" || algo == "densify", op,
                    ": algo: expected 'auto', 'scalar', 'staged' or 'densify', got '", std::string(algo.data(), algo.size()), "'");
  TORCH_CHECK_TYPE(type != at::kDouble || algo == "auto" || algo == "scalar", op, ": algo: expected 'auto' or 'scalar' for ", type, ", got '",
                   std::string(algo.data(), algo.size()), "'");
  if (algo == "auto") return std::nullopt;
  return algo == "scalar" ? SpmmAlgo::scalar : algo == "staged" ? SpmmAlgo::staged : SpmmAlgo::densify;
}

SpmmAlgo choose(const SpmmArgs& a, const cuda::DeviceProps& props) {
  const int size = cuda::bytes_of(a.type);
  return cuda::choose_spmm(
      {a.rows, a.cols, a.n, a.nnz, size, cuda::bytes_of(a.val_type), size == 2, size == 4 && cuda::tf32_allowed(), a.b_col != 1, a.perm != nullptr},
      props, may_densify(a));
}

bool staged_fits(const SpmmArgs& a, const cuda::DeviceProps& props) {
  return cuda::staged_fits(cuda::plan_staged(a.rows, a.cols, a.n, cuda::bytes_of(a.type), props), a.rows, a.n, a.nnz);
}

}  // namespace

at::Tensor unit_strided_cuda(const at::Tensor& t) {
  const bool row_major = t.stride(1) == 1 && t.stride(0) >= t.size(1), column_major = t.stride(0) == 1 && t.stride(1) >= t.size(0);
  return row_major || column_major ? t : t.contiguous();
}

void spmm_into_cuda(const char* op, const at::Tensor& crow, const at::Tensor& col, const at::Tensor& val, const at::Tensor& b,
                    const std::optional<at::Tensor>& perm, const std::optional<at::Tensor>& row_order, const std::optional<at::Tensor>& bias,
                    const at::Tensor& out, c10::string_view algo) {
  if (out.numel() == 0) return;
  const at::Tensor pointers = crow.contiguous(), columns = col.contiguous(), values = val.contiguous();
  const at::Tensor positions = perm ? perm->contiguous() : at::Tensor(), order = row_order ? row_order->contiguous() : at::Tensor();
  const at::Tensor offset = bias ? bias->contiguous() : at::Tensor();
  SpmmArgs a = {};
  a.crow = pointers.const_data_ptr();
  a.wide_crow = pointers.scalar_type() == at::kLong;
  a.col = columns.const_data_ptr<int32_t>();
  a.perm = perm ? positions.const_data_ptr<int32_t>() : nullptr;
  a.row_order = row_order ? order.const_data_ptr<int32_t>() : nullptr;
  set_operands(a, values, b, offset, out);
  a.nnz = col.numel();
  const cuda::DeviceProps props = cuda::device_props(op, b.device());
  const cudaStream_t stream = cuda::current_stream(op, b.device());
  const std::optional<SpmmAlgo> wanted = algo_of(op, algo, b.scalar_type());
  const SpmmAlgo chosen = wanted ? *wanted : choose(a, props);
  if (chosen == SpmmAlgo::staged && staged_fits(a, props)) {
    const at::Tensor workspace = cuda::scratch_beside(b, spmm_staged_workspace_bytes(a));
    SK_CUDA_CHECK(op, launch_spmm_staged(a, workspace.mutable_data_ptr(), props, stream));
    return;
  }
  at::Tensor flags;
  if (chosen == SpmmAlgo::densify) {
    a.guards = cuda::densify_checks(props);
    flags = at::empty({a.guards}, b.options().dtype(at::kInt));
    // Right while b is finite: the flags tell.
    cuda::dense_product(b, bias, out, [&](void* dense, int64_t width) {
      SK_CUDA_CHECK(op, launch_csr_densify(a, dense, width, flags.mutable_data_ptr<int32_t>(), props, stream));
    });
    a.guard = flags.const_data_ptr<int32_t>();
  }
  const at::Tensor workspace = cuda::scratch_beside(b, spmm_scalar_workspace_bytes(a));
  SK_CUDA_CHECK(op, launch_spmm_scalar(a, workspace.mutable_data_ptr(), props, stream));
}

at::Tensor csr_spmm_cuda(const at::Tensor& crow, const at::Tensor& col, const at::Tensor& val, const at::Tensor& b, int64_t rows, int64_t cols,
                         const std::optional<at::Tensor>& row_order, const std::optional<at::Tensor>& bias, c10::string_view algo) {
  constexpr const char* kOp = "csr_spmm";
  cuda::check_cuda(kOp, "b", b);
  check_pattern_shape(kOp, crow, col, rows, cols, b.device());
  check_dense_operand(kOp, "b", b, cols);
  check_values_beside(kOp, "val", val, b, col.numel());
  if (bias) check_values_beside(kOp, "bias", *bias, b, rows);
  if (row_order) check_position_count(kOp, "row_order", *row_order, rows, b.device());
  algo_of(kOp, algo, b.scalar_type());
  const c10::DeviceGuard guard(b.device());
  at::Tensor out = at::empty({rows, b.size(1)}, b.options());
  spmm_into_cuda(kOp, crow, col, val, unit_strided_cuda(b), std::nullopt, row_order, bias, out, algo);
  return out;
}

at::Tensor csr_spmm_t_cuda(const at::Tensor& crow_t, const at::Tensor& row_t, const at::Tensor& perm, const at::Tensor& val, const at::Tensor& b,
                           int64_t rows, int64_t cols, c10::string_view algo) {
  constexpr const char* kOp = "csr_spmm_t";
  cuda::check_cuda(kOp, "b", b);
  check_pattern_shape(kOp, crow_t, row_t, cols, rows, b.device(), "crow_t", "row_t");
  check_dense_operand(kOp, "b", b, rows);
  check_values_beside(kOp, "val", val, b, row_t.numel());
  check_position_count(kOp, "perm", perm, row_t.numel(), b.device());
  algo_of(kOp, algo, b.scalar_type());
  const c10::DeviceGuard guard(b.device());
  at::Tensor out = at::empty({cols, b.size(1)}, b.options());
  spmm_into_cuda(kOp, crow_t, row_t, val, unit_strided_cuda(b), perm, std::nullopt, std::nullopt, out, algo);
  return out;
}

SK_CUDA_LIBRARY(m) {
  m.impl("csr_spmm", &csr_spmm_cuda);
  m.impl("csr_spmm_t", &csr_spmm_t_cuda);
}

}  // namespace sparsekern
