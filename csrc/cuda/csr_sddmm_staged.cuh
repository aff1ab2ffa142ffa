// The staged way of csr_sddmm: a block holds a tile of b in shared memory, `width` columns of 256 bytes of their rows, and walks the
// entries of a band of rows that fall into it: 29.7 TB/s to gather from instead of the L2 cache's 5.5. Eight lanes read 128 bytes in a
// row, so banks never conflict, whatever the columns. A row's share of a sits in registers. Bytes from the L2 cache: every band fetches
// b once, every tile of columns a, and each entry 12 bytes per 256 of its dot; the plan of sddmm_cost.h weighs them.
// A dot is summed along each of its eight lanes within 256 bytes, then lanes 4, 2 and 1 apart, then over tiles in order in each of (up
// to) four parts, then over the parts: nothing of that depends on bands, widths or the device. The columns of a row have to ascend;
// where they do not, dots are wrong, but no access is.
// State: compiled for sm_80 and sm_90a and run under the emulator of csrc/simt; not yet run on a GPU, no time measured.
//
// budget: sddmm_staged_kernel 96
// budget: sddmm_combine_kernel 32
// promise: sddmm_staged_kernel LDG.E.128 LDGSTS.E.128 LDS.128 no-fp64
// promise: sddmm_combine_kernel no-fp64
#pragma once
#include "cuda/async_copy.cuh"
#include "cuda/csr_sddmm.cuh"

namespace sparsekern::cuda {

struct SddmmStagedArgs {
  SddmmPlaces places;  // a pattern
  const char *a, *b;
  int64_t a_pitch, b_pitch;  // bytes, multiples of 16
  int chunks;                // of 16 bytes in a row, in this pass
  SddmmStagedPlan plan;
  float* sums;  // [plan.parts][entries]
  bool first;   // pass: sums are set, not added to
};

constexpr int kStagedThreads = 640;
constexpr int kTileChunks = kSddmmTileBytes / 16;

// The first of the entries [low, high) of a row whose column is not below `limit`.
__device__ __forceinline__ int64_t first_from(const int32_t* col, int64_t low, int64_t high, int64_t limit) {
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (col[middle] < limit) low = middle + 1;
    else high = middle;
  }
  return low;
}

template <class T>
__global__ void __launch_bounds__(kStagedThreads, 1) sddmm_staged_kernel(const __grid_constant__ SddmmStagedArgs args) {
  constexpr int kWarps = kStagedThreads / 32, kOfRow = kTileChunks / kDotLanes, kOfChunk = 16 / sizeof(T);  // a lane's chunks of a row
  const SddmmPlaces& p = args.places;
  const SddmmStagedPlan& plan = args.plan;
  SK_DYNAMIC_SHARED(uint4, tile);  // [width][kTileChunks]
  const int block = static_cast<int>(blockIdx.x), lane = lane_id(), part = lane % kDotLanes, slot = lane / kDotLanes;
  const int of_n = block % plan.parts, band = block / plan.parts / plan.tiles;
  const int left = block / plan.parts % plan.tiles * plan.width, width = min(static_cast<int>(p.cols - left), plan.width);
  const int64_t top = p.rows * band / plan.bands, bottom = p.rows * (band + 1) / plan.bands;
  const int each = bottom - top < 32 * kWarps ? static_cast<int>((bottom - top + kWarps - 1) / kWarps) : 32;
  const int steps = (args.chunks + kTileChunks - 1) / kTileChunks;
  const int begin = steps * of_n / plan.parts, end = steps * (of_n + 1) / plan.parts;
  float* sums = args.sums + of_n * p.entries;

  for (int step = begin; step < end; ++step) {
    const bool sets = args.first && step == begin;
    __syncthreads();  // nobody reads the tile before any more
    for (int i = static_cast<int>(threadIdx.x); i < width * kTileChunks; i += kStagedThreads) {
      const int chunk = step * kTileChunks + i % kTileChunks;
      if (chunk < args.chunks) copy16_async(tile + i, args.b + static_cast<int64_t>(left + i / kTileChunks) * args.b_pitch + 16 * chunk);
      else tile[i] = make_uint4(0, 0, 0, 0);
    }
    wait_copies();
    __syncthreads();
    // Each lane finds the entries of one of `each` rows in the tile; then the warp takes row by row.
    for (int64_t row_0 = top + warp_id() * each; row_0 < bottom; row_0 += kWarps * each) {
      int64_t my_from = 0;
      int my_count = 0;
      if (lane < each && row_0 + lane < bottom) {
        const int64_t stop = number_at(p.crow, row_0 + lane + 1, p.wide);
        my_from = first_from(p.col, number_at(p.crow, row_0 + lane, p.wide), stop, left);
        my_count = static_cast<int>(first_from(p.col, my_from, stop, static_cast<int64_t>(left) + width) - my_from);
      }
#pragma unroll 1
      for (int k = 0; k < each && row_0 + k < bottom; ++k) {
        const int64_t from = __shfl_sync(kAllLanes, my_from, k);
        int count = __shfl_sync(kAllLanes, my_count, k);
        if (count == 0) continue;
        const int32_t* col = p.col + from + slot;
        float* out = sums + from + part / 2 * kSlots + slot;
        float x[kOfRow][kOfChunk] = {};
#pragma unroll
        for (int c = 0; c < kOfRow; ++c) {
          const int chunk = step * kTileChunks + c * kDotLanes + part;
          if (chunk >= args.chunks) continue;
          const Chunk<T> packed = load_chunk<T>(args.a + (row_0 + k) * args.a_pitch + 16 * chunk);
#pragma unroll
          for (int i = 0; i < kOfChunk; ++i) x[c][i] = to_float(packed.at[i]);
        }
        // As many of the sixteen as there are: neighbours in a row and a tile are few.
        const auto some = [&](auto groups) {
          constexpr int U = decltype(groups)::value;
          const uint4* y[U];
          float sum[kDotsInFlight] = {};
#pragma unroll
          for (int u = 0; u < U; ++u) {
            const int c = u * kSlots + slot < count ? col[u * kSlots] - left : 0;
            y[u] = tile + (static_cast<unsigned>(c) < static_cast<unsigned>(width) ? c : 0) * kTileChunks + part;
          }
#pragma unroll
          for (int c = 0; c < kOfRow; ++c) {
            Chunk<T> held[U];
#pragma unroll
            for (int u = 0; u < U; ++u) *reinterpret_cast<uint4*>(&held[u]) = y[u][c * kDotLanes];
#pragma unroll
            for (int i = 0; i < kOfChunk; ++i)
#pragma unroll
              for (int u = 0; u < U; ++u) sum[u] = __fmaf_rn(x[c][i], to_float(held[u].at[i]), sum[u]);
          }
          const float dot = four_dots(sum, part);
          if (part % 2 == 0 && part / 2 * kSlots + slot < count) *out = sets ? dot : *out + dot;
        };
#pragma unroll 1
        for (; count > 0; count -= kDotsAtATime, col += kDotsAtATime, out += kDotsAtATime) {
          if (count > 2 * kSlots) some(std::integral_constant<int, 4>());
          else if (count > kSlots) some(std::integral_constant<int, 2>());
          else some(std::integral_constant<int, 1>());
        }
      }
    }
  }
}

// The parts of each sum, in order.
__global__ void __launch_bounds__(kThreads) sddmm_combine_kernel(const float* sums, int parts, int64_t entries, void* out, SddmmType out_type) {
  const int64_t e = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (e >= entries) return;
  float part[kSddmmParts], sum = 0;
#pragma unroll
  for (int k = 0; k < kSddmmParts; ++k) part[k] = k < parts ? sums[k * entries + e] : 0.f;
#pragma unroll
  for (int k = 0; k < kSddmmParts; ++k)
    if (k < parts) sum = k == 0 ? part[k] : sum + part[k];
  store_as(out, e, sum, out_type);
}

}  // namespace sparsekern::cuda
