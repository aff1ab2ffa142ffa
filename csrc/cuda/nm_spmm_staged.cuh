// nm_staged_kernel: out = W b + bias with b's rows gathered from shared memory, laid out as in csr_spmm_staged.cuh: a panel of 128 bytes
// of columns, tiles of whole groups through two buffers, four lanes to a row. All rows have equally many entries in a tile, so the loop
// over them is the same for the whole block, and the group's first column is counted, not divided out. Four lanes read 16 entries of a
// row at once, 4 bytes of positions and four values each, and deal them by shuffles: one for four positions, one for each value.
// Rows taken together: R rows of one band (v a multiple of R) share the positions, and what a lane reads of b serves R rows.
// Bound, one row at a time: nnz * n * size(b) bytes of shared memory (29.7 TB/s on an H200): 145 us for 1:8 at 4096^2, N = 512 in fp32, where
// the dense fp32 product takes 344 us. Four together: per entry and warp 8 + 5 accesses of the shared memory's pipe and 32 multiply-adds in
// each of four schedulers' 8 cycles. Beside them ceil(rows / rows of a block) * K * n * size(b) bytes of tiles from the L2 cache.
// Sums are chains of fused multiply-adds in column order: the bits of spmm_scalar_kernel.
// State: compiled for sm_80 and sm_90a and run under the emulator of csrc/simt; not yet run on a GPU, no time measured.
//
// budget: nm_staged_kernel 64
// budget: nm_together_kernel 128
// promise: nm_staged_kernel LDS.128 STG.E.128 LDGSTS.E.128 no-fp64
// promise: nm_together_kernel LDS.128 STG.E.128 LDGSTS.E.128 no-fp64
#pragma once
#include "cuda/csr_spmm_staged.cuh"
#include "cuda/nm_spmm.cuh"

namespace sparsekern::cuda {

struct NmStagedCall : StagedCall {
  bool entries_aligned;  // four positions, and four values, can be read at once
};

// Entries [begin, end) of W rows that share positions, which stand in the tile from column k on; `tile` is where row 0 of b would be. `index` and
// `values` are those of the row, `values` of the others per_row further each. Whole warps.
template <class T, class V, int W, int N>
__device__ __forceinline__ void gather_groups(const NmArgs& a, const unsigned char* shared, unsigned tile, unsigned zero_row, unsigned k, int begin,
                                              int end, const uint8_t* index, const V* values, bool aligned, float (&sum)[W][2][N]) {
  const int lane = lane_id(), quad = lane & 3;
  const unsigned near = (quad * 16) ^ ((lane & 4) * 16);
  constexpr int kPerWord = 4 / sizeof(V);  // weights that a shuffle deals
  int in_group = 0;
#pragma unroll 1
  for (int e = begin; e < end; e += 16) {
    const int own = e + 4 * quad;
    unsigned positions = 0;
    Group<V, 4> weights[W];
    if (aligned && own + 4 <= end) {
      positions = *reinterpret_cast<const unsigned*>(index + own);
#pragma unroll
      for (int w = 0; w < W; ++w) weights[w] = load_group<V, 4>(values + w * a.per_row + own, true);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool there = own + i < end;
        if (there) positions |= static_cast<unsigned>(index[own + i]) << 8 * i;
#pragma unroll
        for (int w = 0; w < W; ++w) weights[w].at[i] = there ? values[w * a.per_row + own + i] : narrowed<V>(no_weight<float>());
      }
    }
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      if (e + 4 * q >= end) break;  // for all rows alike
      const unsigned four = __shfl_sync(kAllLanes, positions, q, 4);
      unsigned words[W];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const unsigned offset = tile + row_offset<N>(k + within_group(four >> 8 * i & 255, a.group));
        const unsigned row = e + 4 * q + i < end ? offset : zero_row;
        if (++in_group == a.keep) in_group = 0, k += a.group;
        if (i % kPerWord == 0) {
#pragma unroll
          for (int w = 0; w < W; ++w) words[w] = __shfl_sync(kAllLanes, reinterpret_cast<const unsigned*>(&weights[w])[i / kPerWord], q, 4);
        }
        float weight[W];
#pragma unroll
        for (int w = 0; w < W; ++w) weight[w] = widened(reinterpret_cast<const V*>(&words[w])[i % kPerWord]);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const auto group = *reinterpret_cast<const Group<T, N>*>(shared + (row ^ near ^ h * 64));
          float x[N];
          widen_group(group, x);
#pragma unroll
          for (int w = 0; w < W; ++w)
#pragma unroll
            for (int c = 0; c < N; ++c) sum[w][h][c] = __fmaf_rn(weight[w], x[c], sum[w][h][c]);
        }
      }
    }
  }
}

// L sets of W rows; a set shares its positions. Block i has panel i / row_blocks, its four lanes g the sets first + l * blockDim.x / 4.
template <class T, class V, int L, int W>
__device__ __forceinline__ void staged_product(const NmArgs& a, const NmStagedCall& call, unsigned char* shared) {
  constexpr int N = 16 / sizeof(T);
  const StagedPlan& plan = call.plan;
  const int lines = static_cast<int>(blockDim.x) / 4, line = static_cast<int>(threadIdx.x) / 4;
  const int panel = static_cast<int>(blockIdx.x) / plan.row_blocks, j0 = panel * static_cast<int>(kPanelBytes / sizeof(T));
  const int first = (static_cast<int>(blockIdx.x) - panel * plan.row_blocks) * lines * L + line;
  const unsigned zero_row = plan.buffers * plan.tile_rows * kPanelBytes;
  if (threadIdx.x < kPanelBytes / 4) reinterpret_cast<unsigned*>(shared + zero_row)[threadIdx.x] = 0;

  const int per_row = static_cast<int>(a.per_row), per_tile = plan.tile_rows / a.group * a.keep;
  float sum[L][W][2][N] = {};
  each_tile<T>(a, call, shared, j0, [&](unsigned tile, int t) {
    const int begin = t * per_tile, end = per_row - begin < per_tile ? per_row : begin + per_tile;
    const int start = unknown(first);
#pragma unroll
    for (int l = 0; l < L; ++l) {
      const int row = (start + l * lines) * W, read = row < a.rows ? row : 0;  // one that is there; nothing is stored of it
      const int band = a.v == 1 ? read : read / static_cast<int>(a.v);
      gather_groups<T, V, W, N>(a, shared, tile, zero_row, t * plan.tile_rows, begin, end, a.index + band * a.per_row,
                                static_cast<const V*>(a.val) + read * a.per_row, call.entries_aligned, sum[l]);
    }
  });
  const int start = unknown(first);
  const int near = ((lane_id() & 3) * 16 ^ (lane_id() & 4) * 16) / static_cast<int>(sizeof(T)), far = near ^ (64 / static_cast<int>(sizeof(T)));
#pragma unroll
  for (int l = 0; l < L; ++l)
#pragma unroll
    for (int w = 0; w < W; ++w) {
      const int64_t row = static_cast<int64_t>(start + l * lines) * W + w;
      if (row >= a.rows) continue;
      const float bias = bias_at<T>(a, row);
      store_sums<T, N>(a, row, j0 + near, sum[l][w][0], bias, call.store_aligned);
      store_sums<T, N>(a, row, j0 + far, sum[l][w][1], bias, call.store_aligned);
    }
}

template <class T, class V, int L>
__global__ void __launch_bounds__(kStagedThreads, 1) nm_staged_kernel(const __grid_constant__ NmArgs a, const __grid_constant__ NmStagedCall call) {
  SK_DYNAMIC_SHARED(unsigned char, shared);
  staged_product<T, V, L, 1>(a, call, shared);
}

template <class T, class V>
__global__ void __launch_bounds__(kTogetherThreads, 1)
    nm_together_kernel(const __grid_constant__ NmArgs a, const __grid_constant__ NmStagedCall call) {
  SK_DYNAMIC_SHARED(unsigned char, shared);
  staged_product<T, V, 1, kRowsTogether>(a, call, shared);
}

}  // namespace sparsekern::cuda
