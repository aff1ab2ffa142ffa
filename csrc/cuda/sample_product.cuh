// Rows and columns drawn in proportion to weights, bit for bit as csrc/cpu/sample_product.h draws them.
// Tables: the largest weights, every weight as an integer in fp64 (the only use of fp64), one running sum over the rows' and the columns'
// integers together, and a guide: for the high bits of a place, the first item that can be meant. Some 40 B an item, five launches.
// Draws: Philox, two products, and for each of row and column a look into the guide and at most a few steps of a binary search in the sums
// between two of its entries: with two to four entries an item mostly none or one. 8 B written a sample; the tables (100 KB for 4,096
// items) are read through L1. A million samples: 2 us of writes, some 8 us expected for the arithmetic of Philox and the look-ups.
// State: compiled for sm_80 and sm_90a and run under the emulator of csrc/simt; not yet run on a GPU, no time measured.
//
// budget: sample_max_kernel 32
// budget: sample_units_kernel 48
// budget: sample_guide_kernel 40
// budget: sample_draw_kernel 40
// promise: sample_max_kernel no-fp64
// promise: sample_guide_kernel no-fp64
// promise: sample_draw_kernel no-fp64
#pragma once
#include <cmath>

#include "common/philox.h"
#include "cuda/csr_device.cuh"
#include "cuda/sample_product.h"

namespace sparsekern::cuda {

constexpr double kSampleUnit = 274877906944.0;   // 2^38, what the largest weight becomes
constexpr uint32_t kLargestFloat = 0x7f7fffffu;  // its bits; infinity counts as it
constexpr int kMaxBlocks = 32;                   // that look for the largest weight of a table: a warp reads their findings
static_assert(kMaxBlocks == 32);

// Weights that are not negative, as bits: their order is that of the numbers. Negative ones and NaN are 0.
__device__ __forceinline__ uint32_t weight_bits(float w) { return w > 0 ? min(__float_as_uint(w), kLargestFloat) : 0; }

struct SampleTables {
  uint32_t* most;      // [2, kMaxBlocks]
  Count* sums;         // [n_rows + n_cols]
  uint32_t* guide[2];  // [2^guide_bits + 1] for rows and for columns
  int64_t size[2];     // items
  int guide_bits[2];
};

// One table of the two.
struct SampleTable {
  const Count* sums;
  Count before, total;  // what its sums are too high by; of its own items
  int64_t size;
  int shift;
};

__device__ __forceinline__ int bit_length(Count x) { return 64 - __clzll(static_cast<long long>(x)); }

__device__ __forceinline__ SampleTable table_view(const SampleTables& tables, int which) {
  SampleTable t;
  t.sums = tables.sums + (which ? tables.size[0] : 0);
  t.size = which ? tables.size[1] : tables.size[0];  // parameters indexed by a variable would be copied to local memory
  t.before = which ? tables.sums[tables.size[0] - 1] : 0;
  t.total = t.sums[t.size - 1] - t.before;
  const int bits = bit_length(t.total - 1), wanted = which ? tables.guide_bits[1] : tables.guide_bits[0];
  t.shift = bits > wanted ? bits - wanted : 0;
  return t;
}

// Blocks [0, kMaxBlocks) look at the rows' weights, as many at the columns'.
__global__ void __launch_bounds__(kThreads) sample_max_kernel(const SampleWeights weights, uint32_t* most) {
  __shared__ uint32_t warps[kThreads / 32];
  const int which = static_cast<int>(blockIdx.x) / kMaxBlocks, part = static_cast<int>(blockIdx.x) % kMaxBlocks;
  const float* from = which ? weights.cols : weights.rows;
  const int64_t size = which ? weights.n_cols : weights.n_rows;
  uint32_t high = 0;
  for (int64_t i = part * kThreads + static_cast<int>(threadIdx.x); i < size; i += kMaxBlocks * kThreads) high = max(high, weight_bits(from[i]));
  high = __reduce_max_sync(kAllLanes, high);
  if (lane_id() == 0) warps[warp_id()] = high;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kThreads / 32; ++w) high = max(high, warps[w]);
    most[blockIdx.x] = high;
  }
}

// round(w / most * 2^38), at least 1 where w > 0; all 1 where there is no weight at all.
__device__ __forceinline__ Count units_of(uint32_t bits, double most) {
  if (!(most > 0)) return 1;
  if (bits == 0) return 0;
  const double scaled = rint(static_cast<double>(__uint_as_float(bits)) / most * kSampleUnit);
  return scaled < 1 ? 1 : static_cast<Count>(scaled);
}

__global__ void __launch_bounds__(kThreads) sample_units_kernel(const SampleWeights weights, const uint32_t* most, Count* units) {
  const double row_most = static_cast<double>(__uint_as_float(__reduce_max_sync(kAllLanes, most[lane_id()])));
  const double col_most = static_cast<double>(__uint_as_float(__reduce_max_sync(kAllLanes, most[kMaxBlocks + lane_id()])));
  for (int64_t i = grid_thread(); i < weights.n_rows + weights.n_cols; i += grid_threads()) {
    const bool row = i < weights.n_rows;
    units[i] = units_of(weight_bits(row ? weights.rows[i] : weights.cols[i - weights.n_rows]), row ? row_most : col_most);
  }
}

// guide[h]: the first item whose sum exceeds h << shift; behind the last such h the last item.
__global__ void __launch_bounds__(kThreads) sample_guide_kernel(const SampleTables tables) {
  const int which = blockIdx.y;
  const SampleTable t = table_view(tables, which);
  uint32_t* guide = which ? tables.guide[1] : tables.guide[0];
  const int64_t entries = static_cast<int64_t>((t.total - 1) >> t.shift) + 1;
  for (int64_t h = grid_thread(); h <= entries; h += grid_threads()) {
    const Count place = t.before + (static_cast<Count>(h) << t.shift);
    guide[h] = static_cast<uint32_t>(first_where(0, t.size - 1, [&](int64_t i) { return t.sums[i] > place; }));
  }
}

// The first item whose sum exceeds the place that the uniform number means.
__device__ __forceinline__ int32_t item_of(const SampleTable& t, const uint32_t* guide, uint64_t uniform) {
  const Count place = multiply_high(uniform, t.total), high = place >> t.shift;
  uint32_t low = guide[high], last = guide[high + 1];
  while (low < last) {
    const uint32_t middle = (low + last) / 2;
    if (t.sums[middle] > t.before + place) last = middle;
    else low = middle + 1;
  }
  return static_cast<int32_t>(low);
}

__global__ void __launch_bounds__(kThreads) sample_draw_kernel(const SampleTables tables, const SampleDraws draws) {
  const SampleTable rows = table_view(tables, 0), cols = table_view(tables, 1);
  const uint64_t seed = static_cast<uint64_t>(*draws.seed);
  const DrawState state = draws.state != nullptr ? *draws.state : DrawState{0, 0};
  for (int64_t i = static_cast<int64_t>(state.found) + grid_thread(); i < draws.count; i += grid_threads()) {
    const Uniforms uniform = sample_uniforms(seed, state.drawn + (static_cast<Count>(i) - state.found));
    draws.rows[i] = item_of(rows, tables.guide[0], uniform.row);
    draws.cols[i] = item_of(cols, tables.guide[1], uniform.col);
  }
}

}  // namespace sparsekern::cuda
