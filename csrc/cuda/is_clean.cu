// Launcher of is_clean; the kernel is in is_clean.cuh.
#include "cuda/is_clean.cuh"

#include <algorithm>

namespace sparsekern::cuda {

int launch_is_clean(CleanEntry* entries, size_t count, int bytes, bool* clean, const DeviceProps& props, cudaStream_t stream) {
  return each_launch(entries, count, kCleanTable, [&](CleanEntry* some, size_t n) {
    const ListPlan plan = plan_list(some, n, props, kCleanBlocksPerSm);
    CleanTable table;
    std::copy_n(some, n, table.entry);
    const auto kernel = bytes == 4 ? &is_clean_kernel<uint32_t> : &is_clean_kernel<uint16_t>;
    SK_LAUNCH(kernel, plan.grid, kThreads, 0, stream, table, plan, clean);
    return static_cast<int>(cudaGetLastError());
  });
}

}  // namespace sparsekern::cuda
