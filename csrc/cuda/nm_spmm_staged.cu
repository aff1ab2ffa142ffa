// The launcher of nm_staged_kernel and nm_together_kernel.
#include "cuda/csr_spmm_launch.cuh"
#include "cuda/nm_spmm_staged.cuh"

namespace sparsekern::cuda {
namespace {

template <class Kernel>
int launch(Kernel kernel, const NmArgs& a, const NmStagedCall& call, const DeviceProps& props, cudaStream_t stream) {
  // Always the same bound: one that followed the shape could shrink under another host thread that is about to launch.
  if (const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, props.shared_bytes))
    return static_cast<int>(status);
  const StagedPlan& plan = call.plan;
  SK_LAUNCH(kernel, static_cast<unsigned>(plan.panels * plan.row_blocks), plan.threads, static_cast<int>(plan.shared_bytes), stream, a, call);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace

int launch_nm_staged(const NmArgs& a, const DeviceProps& props, cudaStream_t stream) {
  if (a.rows == 0 || a.n == 0) return 0;
  const int size = bytes_of(a.type), val_size = bytes_of(a.val_type);
  NmStagedCall call = {};
  call.plan = plan_nm_staged(a.rows, a.cols, a.n, size, a.v, a.keep, a.group, props);
  if (!staged_fits(call.plan, a.rows, a.n, a.nnz)) return static_cast<int>(cudaErrorInvalidValue);
  call.load_aligned = reinterpret_cast<uintptr_t>(a.b) % 16 == 0 && (a.b_col == 1 ? a.b_row : a.b_col) * size % 16 == 0;
  call.store_aligned = store_aligned(a);
  call.entries_aligned = call.plan.tile_rows / a.group * a.keep % 4 == 0 && a.per_row % 4 == 0 && reinterpret_cast<uintptr_t>(a.index) % 4 == 0 &&
                         reinterpret_cast<uintptr_t>(a.val) % (4 * val_size) == 0;
  return with_types<false>(a.type, a.val_type, [&](auto zero, auto value) {
    using T = decltype(zero);
    using V = decltype(value);
    if (rows_together(a.v)) return launch(&nm_together_kernel<T, V>, a, call, props, stream);
    if constexpr (sizeof(T) == 4)
      if (call.plan.rows_per_group == 2) return launch(&nm_staged_kernel<T, V, 2>, a, call, props, stream);
    return launch(&nm_staged_kernel<T, V, 1>, a, call, props, stream);
  });
}

}  // namespace sparsekern::cuda
