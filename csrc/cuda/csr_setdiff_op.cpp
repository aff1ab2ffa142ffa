// Checks and registration of csr_setdiff on CUDA.
#include <tuple>

#include "cuda/csr_setdiff.h"
#include "cuda/csr_tensors.h"

namespace sparsekern {
namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> csr_setdiff_cuda(const at::Tensor& rows, const at::Tensor& cols, const at::Tensor& crow,
                                                                const at::Tensor& col, int64_t n_cols) {
  constexpr const char* kOp = "csr_setdiff";
  check_places("rows", rows, rows.numel());
  check_places("cols", cols, rows.numel());
  const cuda::CsrTensors p(kOp, crow, col, std::max<int64_t>(crow.numel() - 1, 0), n_cols);
  const c10::Device device = crow.device();
  check_same_device(kOp, "rows", rows, device);
  check_same_device(kOp, "cols", cols, device);
  const c10::DeviceGuard guard(device);
  const at::Tensor from_rows = rows.contiguous(), from_cols = cols.contiguous();
  const int64_t count = rows.numel();
  at::Tensor out_rows = at::empty({count}, rows.options()), out_cols = at::empty({count}, rows.options());
  at::Tensor out_count = at::empty({}, rows.options().dtype(at::kLong));
  const at::Tensor workspace = cuda::scratch(cuda::csr_setdiff_workspace_bytes(count, p.view.rows), device);
  const cuda::SetDiff args = {
      from_rows.const_data_ptr<int32_t>(),  from_cols.const_data_ptr<int32_t>(),   count,   p.view, out_rows.mutable_data_ptr<int32_t>(),
      out_cols.mutable_data_ptr<int32_t>(), out_count.mutable_data_ptr<int64_t>(), nullptr, nullptr};
  SK_CUDA_CHECK(kOp,
                cuda::launch_csr_setdiff(args, workspace.mutable_data_ptr(), cuda::device_props(kOp, device), cuda::current_stream(kOp, device)));
  return {out_rows, out_cols, out_count};
}

}  // namespace

SK_CUDA_LIBRARY(m) { m.impl("csr_setdiff", &csr_setdiff_cuda); }

}  // namespace sparsekern
