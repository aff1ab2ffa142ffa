// score[o] = beta * sum over a of |w[o, j]| + (1 - beta) * sum over b: by selection, hidden values never show.
// A persistent grid walks tiles of rows of a whole list; 8 to 256 threads share a row by its size. A thread adds its elements
// in order, the lanes are added in a tree, the warps in order: sums do not depend on the grid.
// Bytes per element: 4 and both masks, in fp32; bandwidth-bound. A group of 16 bytes that both masks hide is not read.
// State: compiled for sm_80 and sm_90a and run under the emulator of csrc/simt; not yet run on a GPU, no time measured.
//
// budget: channel_scores_kernel 64
// promise: channel_scores_kernel LDG.E.128 no-fp64
#pragma once
#include "cuda/channel_scores.h"
#include "cuda/collective.cuh"
#include "cuda/vector_io.cuh"

namespace sparsekern::cuda {

constexpr int kScoreBlocksPerSm = 4;
constexpr int kSmallScoreTable = 80, kLargeScoreTable = 584;

template <int capacity>
struct ScoreTable {
  ScoreEntry entry[capacity];
};

struct ScoreArgs {
  ScorePlan plan;
  bool has_b;
  float beta, one_minus_beta;
};
static_assert(sizeof(ScoreTable<kLargeScoreTable>) + sizeof(ScoreArgs) <= kParameterBytes);

// A row's mask from any place; of bits `shift` is the place of the first in its word.
struct RowMask {
  const void* data;
  int shift;
  bool aligned;
  MaskKind kind;
};
__device__ __forceinline__ RowMask row_mask(const void* mask, MaskKind kind, int64_t begin) {
  if (kind == MaskKind::none) return {nullptr, 0, false, kind};
  if (kind == MaskKind::bits) return {static_cast<const uint32_t*>(mask) + (begin >> 5), static_cast<int>(begin & 31), false, kind};
  const uint8_t* bytes = static_cast<const uint8_t*>(mask) + begin;
  return {bytes, 0, is_aligned(bytes, 4), kind};
}
template <int N>
__device__ __forceinline__ unsigned bits_of(const RowMask& mask, int i) {
  if (mask.kind == MaskKind::bools) return bool_group<N>(static_cast<const uint8_t*>(mask.data), i, mask.aligned);
  if (mask.kind == MaskKind::bits) return bit_group<N>(static_cast<const uint32_t*>(mask.data), mask.shift + i);
  return (1u << N) - 1;
}

template <class T, int N>
__device__ __forceinline__ void add_group(const Group<T, N>& x, unsigned in_a, unsigned in_b, float& sum_a, float& sum_b) {
#pragma unroll
  for (int k = 0; k < N; ++k) {
    const float size = fabsf(to_float(x.at[k]));
    sum_a = __fadd_rn(sum_a, in_a >> k & 1 ? size : 0.f);
    sum_b = __fadd_rn(sum_b, in_b >> k & 1 ? size : 0.f);
  }
}

// What thread `part` of `parts` sees of the `count` elements from `begin` on, weighed.
template <class T>
__device__ __forceinline__ float row_part(const ScoreEntry& e, const ScoreArgs& args, int64_t begin, int count, int part, int parts) {
  constexpr int N = 16 / sizeof(T), U = 16 / N;
  const T* x = static_cast<const T*>(e.weight) + begin;
  const RowMask a = row_mask(e.a, e.a_kind, begin), b = row_mask(e.b, e.b_kind, begin);
  const bool aligned = is_aligned(x, 16);
  const int groups = count / N;
  float sum_a = 0, sum_b = 0;
  for (int j = part; j < groups; j += parts * U) {
    unsigned in_a[U], in_b[U];
    Group<T, N> group[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int at = j + u * parts;
      in_a[u] = at < groups ? bits_of<N>(a, at * N) : 0;
      in_b[u] = args.has_b && at < groups ? bits_of<N>(b, at * N) : 0;
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      group[u] = Group<T, N>{};
      if (in_a[u] | in_b[u]) group[u] = load_group<T, N, Cache::stream>(x + (j + u * parts) * N, aligned);
    }
#pragma unroll
    for (int u = 0; u < U; ++u) add_group(group[u], in_a[u], in_b[u], sum_a, sum_b);
  }
  const int i = groups * N + part;  // fewer than N <= parts are left
  if (i < count) add_group(load_group<T, 1>(x + i, false), bits_of<1>(a, i), args.has_b ? bits_of<1>(b, i) : 0, sum_a, sum_b);
  sum_a = __fmul_rn(args.beta, sum_a);
  return args.has_b ? __fadd_rn(sum_a, __fmul_rn(args.one_minus_beta, sum_b)) : sum_a;
}

template <class T, int capacity>
__global__ void __launch_bounds__(kThreads, kScoreBlocksPerSm)
    channel_scores_kernel(const __grid_constant__ ScoreTable<capacity> table, const __grid_constant__ ScoreArgs args) {
  constexpr int warps = kThreads / 32;
  __shared__ float sums[2][warps];  // of a step and the one before, so that one barrier a step is enough
  int turn = 0;
  for (int tile = static_cast<int>(blockIdx.x); tile < args.plan.tiles; tile += static_cast<int>(gridDim.x)) {
    int low = 0, high = args.plan.count;  // the last entry with first <= tile is in [low, high)
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (table.entry[middle].first <= tile) low = middle;
      else high = middle;
    }
    const ScoreEntry& e = table.entry[low];
    const int parts = score_threads(e.row_size), part = static_cast<int>(threadIdx.x) % parts, rows = score_rows(e.row_size);
    const int begin = (tile - e.first) * rows, end = min(begin + rows, e.rows);
    for (int step = begin; step < end; step += kThreads / parts) {
      const int row = step + static_cast<int>(threadIdx.x) / parts;
      float sum = row_part<T>(e, args, row * e.row_size, row < end ? static_cast<int>(e.row_size) : 0, part, parts);
      for (int bit = min(parts, 32) / 2; bit > 0; bit /= 2) sum = __fadd_rn(sum, __shfl_xor_sync(kAllLanes, sum, bit));
      if (parts > 32) {
        if (lane_id() == 0) sums[turn][warp_id()] = sum;
        __syncthreads();
        for (int k = 1; k < parts / 32 && part == 0; ++k) sum = __fadd_rn(sum, sums[turn][warp_id() + k]);
        turn ^= 1;
      }
      if (part == 0 && row < end) e.out[row] = sum;
    }
  }
}

}  // namespace sparsekern::cuda
