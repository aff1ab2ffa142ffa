// out = W b + bias with b's rows gathered from shared memory: a block has a panel of 128 bytes of columns (64 of 16-bit
// types, 32 of fp32) and up to 512 rows of W. K-tiles of the panel pass through two buffers of up to 113 KB; while one is
// in use the next one arrives. A row's sums stay in the registers of four lanes, so they are chains of fused multiply-adds
// in column order, the bits of spmm_scalar_kernel.
// Bound: nnz * n * size(b) bytes of shared memory (29.7 TB/s on an H200), beside ceil(rows / 512) * K * n * size(b) bytes
// of tiles and nnz * (4 + size(val)) * n / panel bytes of the pattern from the L2 cache. A lane reads 16 bytes of either
// half of a row of the tile; neighbouring groups take opposite halves first, so eight lanes never meet in a bank.
// A row's next eight entries are read by its lanes together and dealt by shuffles. What stands in no row or behind the tile
// points at a row of zeros with weight -0: no branch, and no bit of a sum changes.
// State: compiled for sm_80 and sm_90a and run under the emulator of csrc/simt; not yet run on a GPU, no time measured.
//
// budget: spmm_staged_kernel 64
// promise: spmm_staged_kernel LDS.128 STG.E.128 LDGSTS.E.128 no-fp64
#pragma once
#include "cuda/async_copy.cuh"
#include "cuda/collective.cuh"
#include "cuda/csr_product.cuh"
#include "cuda/csr_staged_plan.h"

namespace sparsekern::cuda {

struct StagedCall {
  StagedPlan plan;
  bool load_aligned, store_aligned;
};

// The same number as the compiler does not know it: what is made of it again need not stay in registers until then.
__device__ __forceinline__ int unknown(int x) {
#ifdef __CUDACC__
  asm volatile("" : "+r"(x));
#endif
  return x;
}

// Where row k of a tile starts. Its 16-byte chunks c stand at c ^ (k / N & 3), so that rows which a column-major load writes
// together fall on different banks; both halves keep their chunks, which is what the reader's banks rest on.
template <int N>
__device__ __forceinline__ unsigned row_offset(unsigned k) {
  return k * kPanelBytes | (k / N & 3) * 16;
}

// Rows [k0, k0 + height) of the panel from column j0 on to `tile` (where row 0 of b would be); columns past the last one are 0.
template <class T>
__device__ __forceinline__ void load_tile(const SpmmArgs& a, unsigned char* shared, unsigned tile, unsigned k0, int height, int j0, bool aligned) {
  constexpr int N = 16 / sizeof(T), kPair = 4 / sizeof(T);
  const T* b = static_cast<const T*>(a.b);
  const T zero = narrowed<T>(0.f);
  if (a.b_col == 1) {
    for (int i = static_cast<int>(threadIdx.x); i < height * 8; i += static_cast<int>(blockDim.x)) {
      const unsigned k = k0 + (i >> 3);
      const int j = j0 + (i & 7) * N;
      const T* from = b + k * a.b_row + j;
      T* to = reinterpret_cast<T*>(shared + (tile + (row_offset<N>(k) ^ (i & 7) * 16)));
      if (aligned && j + N <= a.n) {
        copy16_async(to, from);
      } else {
#pragma unroll 1
        for (int q = 0; q < N; ++q) to[q] = j + q < a.n ? from[q] : zero;
      }
    }
    return;
  }
  // Column-major: eight lanes read 128 bytes of a column, one word of columns each; a warp has a chunk of columns and 8 N rows.
  const int across = 8 * N, blocks = (height + across - 1) / across;
  for (int i = warp_id(); i < blocks * 8; i += static_cast<int>(blockDim.x) / 32) {
    const int first = (i >> 3) * across + (lane_id() & 7) * N, word = (i & 7) * 16 + (lane_id() >> 3) * 4;  // in the tile; in a row
    const int j = j0 + word / static_cast<int>(sizeof(T)), count = height - first;
    const T* from = b + j * a.b_col + k0 + first;
    if (aligned && j + kPair <= a.n && count >= N) {
      Group<T, N> part[kPair];
#pragma unroll
      for (int p = 0; p < kPair; ++p) part[p] = load_group<T, N>(from + p * a.b_col, true);
#pragma unroll
      for (int q = 0; q < N; ++q) {
        Group<T, kPair> pair;
#pragma unroll
        for (int p = 0; p < kPair; ++p) pair.at[p] = part[p].at[q];
        *reinterpret_cast<Group<T, kPair>*>(shared + (tile + (row_offset<N>(k0 + first + q) ^ word))) = pair;
      }
    } else {
#pragma unroll 1
      for (int q = 0; q < N && q < count; ++q) {
        T* to = reinterpret_cast<T*>(shared + (tile + (row_offset<N>(k0 + first + q) ^ word)));
#pragma unroll
        for (int p = 0; p < kPair; ++p) to[p] = j + p < a.n ? from[q + p * a.b_col] : zero;
      }
    }
  }
}

// Adds the entries of a row from `at` on that lie below column `limit`; `tile` is where row 0 of b would be. Whole warps, as
// long as any of the eight rows of a warp has entries.
template <class T, class V, int N>
__device__ __forceinline__ void gather_tile(const SpmmArgs& a, const unsigned char* shared, unsigned tile, unsigned zero_row, unsigned limit, int& at,
                                            int& left, float (&sum)[2][N]) {
  const int lane = lane_id(), quad = lane & 3;
  const unsigned near = (quad * 16) ^ ((lane & 4) * 16);
  for (;;) {
    unsigned offset[2];
    float weight[2];
    bool there[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int i = 4 * h + quad;
      const unsigned k = i < left ? static_cast<unsigned>(a.col[at + i]) : ~0u;
      const float w = i < left ? widened(static_cast<const V*>(a.val)[at + i]) : no_weight<float>();
      there[h] = k < limit;
      offset[h] = there[h] ? tile + row_offset<N>(k) : zero_row;
      weight[h] = there[h] ? w : no_weight<float>();
    }
    // Columns rise, so what is there stands first.
    const unsigned there_low = __ballot_sync(kAllLanes, there[0]), there_high = __ballot_sync(kAllLanes, there[1]);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (((i < 4 ? there_low : there_high) & 0x11111111u << (i & 3)) == 0) break;  // in no row of the warp
      const unsigned row = __shfl_sync(kAllLanes, offset[i / 4], i & 3, 4);
      const float w = __shfl_sync(kAllLanes, weight[i / 4], i & 3, 4);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const auto group = *reinterpret_cast<const Group<T, N>*>(shared + (row ^ near ^ h * 64));
        float x[N];
        widen_group(group, x);
#pragma unroll
        for (int k = 0; k < N; ++k) sum[h][k] = __fmaf_rn(w, x[k], sum[h][k]);
      }
    }
    const int taken = __popc(there_low >> (lane & 28) & 15) + __popc(there_high >> (lane & 28) & 15);
    at += taken;
    left -= taken;
    if (!__any_sync(kAllLanes, taken == 8 && left > 0)) break;
  }
}

// gather(tile, t) for every tile of the panel from column j0 on, while the next one arrives; `tile` is where row 0 of b would be.
template <class T, class Gather>
__device__ __forceinline__ void each_tile(const SpmmArgs& a, const StagedCall& call, unsigned char* shared, int j0, const Gather& gather) {
  const StagedPlan& plan = call.plan;
  const unsigned tile_bytes = plan.tile_rows * kPanelBytes;
  const auto tile_at = [&](unsigned t) { return (t & 1) * tile_bytes - t * tile_bytes; };  // modulo 2^32
  for (int t = 0; t <= plan.tiles; ++t) {
    if (t < plan.tiles) {
      const int64_t k0 = static_cast<int64_t>(t) * plan.tile_rows, height = a.cols - k0;
      load_tile<T>(a, shared, tile_at(t), static_cast<unsigned>(k0), static_cast<int>(height < plan.tile_rows ? height : plan.tile_rows), j0,
                   call.load_aligned);
    }
    if (t > 0) gather(tile_at(t - 1), t - 1);
    wait_copies();
    __syncthreads();  // tile t is there, and nobody reads the one before any more
  }
}

template <class T, class V, int R>
__global__ void __launch_bounds__(kStagedThreads, 1) spmm_staged_kernel(const __grid_constant__ SpmmArgs a, const __grid_constant__ StagedCall call) {
  constexpr int N = 16 / sizeof(T);
  SK_DYNAMIC_SHARED(unsigned char, shared);
  const StagedPlan& plan = call.plan;
  const int groups = static_cast<int>(blockDim.x) / 4, group = static_cast<int>(threadIdx.x) / 4;
  const int panel = static_cast<int>(blockIdx.x) / plan.row_blocks, j0 = panel * static_cast<int>(kPanelBytes / sizeof(T));
  const int first = (static_cast<int>(blockIdx.x) - panel * plan.row_blocks) * groups * R + group;
  const unsigned zero_row = plan.buffers * plan.tile_rows * kPanelBytes;
  if (threadIdx.x < kPanelBytes / 4) reinterpret_cast<unsigned*>(shared + zero_row)[threadIdx.x] = 0;

  int at[R], left[R];
  float sum[R][2][N] = {};
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int place = first + r * groups;
    RowRange range = {0, 0};
    if (place < a.rows) range = row_range(a, a.row_order ? a.row_order[place] : place);
    at[r] = static_cast<int>(range.begin);
    left[r] = static_cast<int>(range.end - range.begin);
  }
  each_tile<T>(a, call, shared, j0, [&](unsigned tile, int t) {
#pragma unroll
    for (int r = 0; r < R; ++r) gather_tile<T, V, N>(a, shared, tile, zero_row, (t + 1) * plan.tile_rows, at[r], left[r], sum[r]);
  });
  const int start = unknown(first);
  const int near = ((lane_id() & 3) * 16 ^ (lane_id() & 4) * 16) / static_cast<int>(sizeof(T)), far = near ^ (64 / static_cast<int>(sizeof(T)));
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int place = start + r * groups;
    if (place >= a.rows) continue;
    const int64_t row = a.row_order ? a.row_order[place] : place;
    const float bias = bias_at<T>(a, row);
    store_sums<T, N>(a, row, j0 + near, sum[r][0], bias, call.store_aligned);
    store_sums<T, N>(a, row, j0 + far, sum[r][1], bias, call.store_aligned);
  }
}

}  // namespace sparsekern::cuda
