// What csr_plan asks of the GPU: launchers over raw pointers, free of torch.
#pragma once
#include "cuda/csr_rows.h"

namespace sparsekern::cuda {

struct PlanResult {
  int32_t* row_order;     // [rows]
  void* crow_t;           // [cols + 1], of the pattern's own pointer type
  int32_t *row_t, *perm;  // [nnz]
};

size_t csr_plan_workspace_bytes(const CsrView& pattern);

// Rows and nonzeros below 2^31. Returns a cudaError_t.
int launch_csr_plan(const CsrView& pattern, const PlanResult& out, void* workspace, const DeviceProps& props, cudaStream_t stream);

}  // namespace sparsekern::cuda
