// Launcher of prune_regrow_'s last pass; the kernel is in prune_regrow.cuh.
#include "cuda/prune_regrow.cuh"

#include <algorithm>

namespace sparsekern::cuda {
namespace {

template <int capacity>
int launch_table(FlipEntry* entries, size_t count, const FlipOptions& options, const DeviceProps& props, cudaStream_t stream) {
  const FlipArgs args = {plan_list(entries, count, props, kFlipBlocksPerSm), options};
  FlipTable<capacity> table;
  std::copy_n(entries, count, table.entry);
  SK_LAUNCH(prune_regrow_kernel<capacity>, args.plan.grid, kThreads, 0, stream, table, args);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace

int launch_flips(FlipEntry* entries, size_t count, const FlipOptions& options, const DeviceProps& props, cudaStream_t stream) {
  const size_t bytes = static_cast<size_t>(options.segments) * sizeof(int64_t);
  if (bytes == 0) return 0;
  if (const cudaError_t status = cudaMemsetAsync(options.dropped, 0, bytes, stream)) return static_cast<int>(status);
  if (const cudaError_t status = cudaMemsetAsync(options.grown, 0, bytes, stream)) return static_cast<int>(status);
  return each_launch(entries, count, kFlipLarge, [&](FlipEntry* some, size_t n) {
    return n <= kFlipSmall ? launch_table<kFlipSmall>(some, n, options, props, stream) : launch_table<kFlipLarge>(some, n, options, props, stream);
  });
}

}  // namespace sparsekern::cuda
