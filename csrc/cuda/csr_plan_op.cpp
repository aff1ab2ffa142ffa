// Checks and registration of csr_plan on CUDA.
#include <ATen/ops/empty_like.h>

#include <tuple>

#include "cuda/csr_plan.h"
#include "cuda/csr_tensors.h"

namespace sparsekern {
namespace {

using Four = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Four csr_plan_cuda(const at::Tensor& crow, const at::Tensor& col, int64_t rows, int64_t cols) {
  constexpr const char* kOp = "csr_plan";
  const cuda::CsrTensors p(kOp, crow, col, rows, cols);
  check_plan_size(rows, p.view.nnz);
  const c10::Device device = crow.device();
  const c10::DeviceGuard guard(device);
  at::Tensor row_order = at::empty({rows}, col.options()), row_t = at::empty({p.view.nnz}, col.options()), perm = at::empty_like(row_t);
  at::Tensor crow_t = at::empty({cols + 1}, crow.options());
  const at::Tensor workspace = cuda::scratch(cuda::csr_plan_workspace_bytes(p.view), device);
  const cuda::PlanResult out = {row_order.mutable_data_ptr<int32_t>(), crow_t.mutable_data_ptr(), row_t.mutable_data_ptr<int32_t>(),
                                perm.mutable_data_ptr<int32_t>()};
  SK_CUDA_CHECK(kOp,
                cuda::launch_csr_plan(p.view, out, workspace.mutable_data_ptr(), cuda::device_props(kOp, device), cuda::current_stream(kOp, device)));
  return {row_order, crow_t, row_t, perm};
}

}  // namespace

SK_CUDA_LIBRARY(m) { m.impl("csr_plan", &csr_plan_cuda); }

}  // namespace sparsekern
