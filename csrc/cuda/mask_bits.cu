// Launchers of pack_mask, unpack_mask and mask_stats; the kernels are in mask_bits.cuh.
#include "cuda/mask_bits.cuh"

#include <algorithm>

namespace sparsekern::cuda {
namespace {

int pack_grid(int64_t numel, const DeviceProps& props) {
  constexpr int64_t each = 16 * kPackUnroll * kThreads;  // elements of a block's step
  return static_cast<int>(std::min<int64_t>((numel + each - 1) / each, int64_t{props.sms} * kPackBlocksPerSm));
}

template <int capacity>
int launch_table(StatsEntry* entries, size_t count, const DeviceProps& props, cudaStream_t stream) {
  const ListPlan plan = plan_list(entries, count, props, kStatsBlocksPerSm);
  StatsTable<capacity> table;
  std::copy_n(entries, count, table.entry);
  const auto kernel = &mask_stats_kernel<capacity>;
  SK_LAUNCH(kernel, plan.grid, kThreads, 0, stream, table, plan);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace

int launch_pack_mask(const uint8_t* mask, uint32_t* bits, int64_t numel, const DeviceProps& props, cudaStream_t stream) {
  SK_LAUNCH(pack_mask_kernel, pack_grid(numel, props), kThreads, 0, stream, mask, reinterpret_cast<uint16_t*>(bits), numel);
  return static_cast<int>(cudaGetLastError());
}

int launch_unpack_mask(const uint32_t* bits, uint8_t* mask, int64_t numel, const DeviceProps& props, cudaStream_t stream) {
  SK_LAUNCH(unpack_mask_kernel, pack_grid(numel, props), kThreads, 0, stream, bits, mask, numel);
  return static_cast<int>(cudaGetLastError());
}

int launch_mask_stats(StatsEntry* entries, size_t count, const DeviceProps& props, cudaStream_t stream) {
  for (size_t t = 0; t < count; ++t) entries[t].numel = entries[t].packed ? entries[t].count : (entries[t].count + 3) / 4;
  return each_launch(entries, count, kLargeStatsTable, [&](StatsEntry* some, size_t n) {
    return n <= kSmallStatsTable ? launch_table<kSmallStatsTable>(some, n, props, stream) : launch_table<kLargeStatsTable>(some, n, props, stream);
  });
}

}  // namespace sparsekern::cuda
