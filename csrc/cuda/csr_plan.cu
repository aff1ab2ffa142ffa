// Launcher of csr_plan; the kernels are in csr_plan.cuh.
#include "cuda/csr_plan.cuh"

#include "cuda/device_sort.h"
#include "cuda/workspace.h"

namespace sparsekern::cuda {
namespace {

struct PlanSpace {
  Workspace space;
  uint64_t *keys, *sorted;
  uint32_t* numbers;
  size_t sort_bytes;
  char* sort;
  PlanSpace(void* base, const CsrView& p) : space(base) {
    const int64_t most = p.nnz > p.rows ? p.nnz : p.rows;
    keys = space.take<uint64_t>(most);
    sorted = space.take<uint64_t>(most);
    numbers = space.take<uint32_t>(most);
    sort_bytes = sort_workspace_bytes(most);
    sort = space.take<char>(static_cast<int64_t>(sort_bytes));
  }
};

int bit_count(int64_t most) {
  int bits = 1;
  while (most >> bits != 0) ++bits;
  return bits;
}

}  // namespace

size_t csr_plan_workspace_bytes(const CsrView& pattern) { return PlanSpace(nullptr, pattern).space.bytes(); }

int launch_csr_plan(const CsrView& p, const PlanResult& out, void* workspace, const DeviceProps& props, cudaStream_t stream) {
  const PlanSpace s(workspace, p);
  const auto sort = [&](int32_t* order, int64_t count, int low, int high) {
    return launch_sort(s.keys, s.sorted, s.numbers, reinterpret_cast<uint32_t*>(order), count, low, high, s.sort, s.sort_bytes, stream);
  };
  SK_LAUNCH(plan_row_keys_kernel, flat_grid(p.rows, props), kThreads, 0, stream, p, s.keys, s.numbers);
  if (const int status = sort(out.row_order, p.rows, 0, bit_count(p.nnz))) return status;
  SK_LAUNCH(plan_entry_keys_kernel, flat_grid(p.nnz / 4, props), kThreads, 0, stream, p, s.keys, s.numbers);
  if (const int status = sort(out.perm, p.nnz, 32, 32 + bit_count(p.cols > 0 ? p.cols - 1 : 0))) return status;
  SK_LAUNCH(plan_transpose_kernel, flat_grid(p.nnz > p.cols ? p.nnz : p.cols + 1, props), kThreads, 0, stream, p, s.sorted, out.row_t, out.crow_t);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace sparsekern::cuda
