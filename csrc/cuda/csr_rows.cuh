// Places grouped by row, by counting: a warp adds its places of one row in one atomic addition, which also gives them their ranks; a scan
// of the counts and one more pass put them down. Ranks depend on the order of the atomics, the set of a row does not, and no kernel that
// reads the buckets lets the order show. 8 B a place read twice, 4 B written and read (rank), 4 B written (item), all but the items in
// order; at worst one atomic a place.
// State: compiled for sm_80 and sm_90a and run under the emulator of csrc/simt; not yet run on a GPU, no time measured.
//
// budget: bucket_count_kernel 32
// budget: bucket_fill_kernel 32
// promise: bucket_count_kernel no-fp64
// promise: bucket_fill_kernel no-fp64
#pragma once
#include "cuda/csr_device.cuh"

namespace sparsekern::cuda {

// The row of place i, or -1.
__device__ __forceinline__ int32_t row_of_place(const Places& p, int64_t i) {
  if (i >= p.count || (p.take != nullptr && p.take[i] == 0)) return -1;
  const int32_t row = p.rows[i], col = p.cols[i];
  return row >= 0 && col >= 0 && row < p.n_rows && col < p.n_cols ? row : -1;
}

// counts [n_rows] are 0 before.
__global__ void __launch_bounds__(kThreads) bucket_count_kernel(const Places places, Count* counts, uint32_t* rank) {
  for (int64_t first = grid_thread() - lane_id(); first < places.count; first += grid_threads()) {
    const int64_t i = first + lane_id();
    const int32_t row = row_of_place(places, i);
    const unsigned same = __match_any_sync(kAllLanes, row);
    const int leader = __ffs(static_cast<int>(same)) - 1;
    Count before = 0;
    if (row >= 0 && lane_id() == leader) before = atomicAdd(&counts[row], static_cast<Count>(__popc(same)));
    before = __shfl_sync(kAllLanes, before, leader);
    if (row >= 0) rank[i] = static_cast<uint32_t>(before) + __popc(same & ((1u << lane_id()) - 1));
  }
}

__global__ void __launch_bounds__(kThreads) bucket_fill_kernel(const Places places, const Payload payload, const RowBuckets buckets) {
  for (int64_t i = grid_thread(); i < places.count; i += grid_threads()) {
    const int32_t row = row_of_place(places, i);
    if (row < 0) continue;
    buckets.item[begin_of(buckets.ends, row) + buckets.rank[i]] = static_cast<uint32_t>(payload == Payload::column ? places.cols[i] : i);
  }
}

}  // namespace sparsekern::cuda
