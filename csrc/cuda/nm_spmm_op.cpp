// Checks, choice of the algorithm and registration of nm_spmm on CUDA. Nothing here waits for the device, so positions are not looked at.
#include <ATen/ops/empty.h>

#include "common/csr_checks.h"
#include "common/nm_check.h"
#include "cuda/csr_spmm_op.h"
#include "cuda/nm_cost.h"
#include "cuda/spmm_tensors.h"
#include "cuda/tf32.h"

namespace sparsekern {
namespace {

using cuda::NmAlgo;
using cuda::NmArgs;

void multiply(const char* op, NmArgs& a, const at::Tensor& b, const std::optional<at::Tensor>& bias, const at::Tensor& out) {
  const cuda::DeviceProps props = cuda::device_props(op, b.device());
  const cudaStream_t stream = cuda::current_stream(op, b.device());
  const NmAlgo algo = choose_nm(nm_shape(a, cuda::tf32_allowed()), props, may_densify(a));
  if (algo == NmAlgo::staged) {
    SK_CUDA_CHECK(op, launch_nm_staged(a, props, stream));
    return;
  }
  if (algo == NmAlgo::mma) {
    const at::Tensor workspace = cuda::scratch_beside(b, nm_mma_workspace_bytes(a));
    SK_CUDA_CHECK(op, launch_nm_mma(a, workspace.mutable_data_ptr(), stream));
    return;
  }
  at::Tensor flags;
  if (algo == NmAlgo::densify) {
    a.guards = cuda::densify_checks(props);
    flags = at::empty({a.guards}, b.options().dtype(at::kInt));
    // Right while b is finite: the flags tell.
    cuda::dense_product(b, bias, out, [&](void* dense, int64_t width) {
      SK_CUDA_CHECK(op, launch_nm_densify(a, dense, width, flags.mutable_data_ptr<int32_t>(), props, stream));
    });
    a.guard = flags.const_data_ptr<int32_t>();
  }
  const at::Tensor workspace = cuda::scratch_beside(b, nm_scalar_workspace_bytes(a));
  SK_CUDA_CHECK(op, launch_nm_scalar(a, workspace.mutable_data_ptr(), props, stream));
}

at::Tensor nm_spmm_cuda(const at::Tensor& values, const at::Tensor& index, const at::Tensor& b, int64_t n, int64_t m, int64_t cols, int64_t v,
                        const std::optional<at::Tensor>& bias) {
  constexpr const char* kOp = "nm_spmm";
  cuda::check_cuda(kOp, "b", b);
  check_nm_packed(values, index, n, m, cols, v);
  check_dense_operand(kOp, "b", b, cols);
  const int64_t rows = values.size(0), per_row = cols / m * n;
  check_values_beside(kOp, "values", values.flatten(), b, rows * per_row);
  if (bias) check_values_beside(kOp, "bias", *bias, b, rows);
  check_same_device(kOp, "index", index, b.device());
  TORCH_CHECK_VALUE(cols < int64_t{1} << 31, kOp, ": cols: expected fewer than 2^31, got ", cols);
  const c10::DeviceGuard guard(b.device());
  const at::Tensor out = at::empty({rows, b.size(1)}, b.options());
  if (out.numel() == 0) return out;
  const at::Tensor numbers = values.contiguous(), positions = index.contiguous(), operand = unit_strided_cuda(b);
  const at::Tensor offset = bias ? bias->contiguous() : at::Tensor();
  NmArgs a = {};
  set_operands(a, numbers, operand, offset, out);
  a.index = positions.const_data_ptr<uint8_t>();
  a.per_row = per_row, a.v = v;
  a.keep = static_cast<int32_t>(n), a.group = static_cast<int32_t>(m);
  a.by_keep = cuda::divisor(n > 0 ? a.keep : 1);
  multiply(kOp, a, operand, bias, out);
  return out;
}

}  // namespace

SK_CUDA_LIBRARY(m) { m.impl("nm_spmm", &nm_spmm_cuda); }

}  // namespace sparsekern
