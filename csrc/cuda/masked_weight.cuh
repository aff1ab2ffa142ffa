// out = weight where the mask is on, +0 elsewhere, rounded once to out's type; equal types only move bits.
// A persistent grid walks pieces of a whole list (launch.h); a thread asks for 16 weights before it uses any.
// Bytes per element: weight read, out written, mask: 8 + 1 (bool) or 8 + 1/8 (bits) in fp32; bandwidth-bound. A group
// without an active bit is not read: sectors of 32 B drop out where all of their groups do.
// State: compiled for sm_80 and sm_90a and run under the emulator of csrc/simt; not yet run on a GPU, no time measured.
//
// budget: masked_weight_kernel<float 64
// budget: masked_weight_kernel 48
// promise: masked_weight_kernel LDG.E.128 STG.E.128 no-fp64
#pragma once
#include "cuda/masked_weight.h"
#include "cuda/vector_io.cuh"

namespace sparsekern::cuda {

template <int capacity>
struct WeightTable {
  WeightEntry entry[capacity];
};

// In flight per SM: 64 to 80 KB of fp32, 40 KB of halves.
template <class F, class O>
constexpr int kWeightBlocksPerSm = sizeof(F) > sizeof(O) ? 4 : 5;
constexpr int kSmallWeightTable = 80, kLargeWeightTable = 816;
static_assert(sizeof(WeightTable<kLargeWeightTable>) + sizeof(ListPlan) <= kParameterBytes);

// F and O are types of vector_io.cuh, or equal unsigned integers: then nothing is rounded and a NaN keeps its bits.
template <class O, class F>
__device__ __forceinline__ O kept(F x, bool inside) {
  if constexpr (std::is_same_v<F, O>) return inside ? x : F{};
  else return from_float<O>(inside ? to_float(x) : 0.f);
}

// One piece by the whole block. It starts at a multiple of 1024 elements: groups never cross into a second mask word.
template <MaskKind kind, class F, class O>
__device__ __forceinline__ void weight_piece(const WeightEntry& e, int64_t begin, int64_t end) {
  constexpr int N = 16 / (sizeof(F) < sizeof(O) ? sizeof(F) : sizeof(O)), U = 16 / N;
  const F* from = static_cast<const F*>(e.from) + begin;
  O* to = static_cast<O*>(e.to) + begin;
  const void* mask = static_cast<const char*>(e.mask) + (kind == MaskKind::bits ? begin / 8 : begin);
  const bool from_aligned = is_aligned(from, 16), to_aligned = is_aligned(to, 16), mask_aligned = is_aligned(mask, 4);
  const int count = static_cast<int>(end - begin), groups = count / N, self = static_cast<int>(threadIdx.x);
  for (int j = self; j < groups; j += kThreads * U) {
    unsigned on[U];
    Group<F, N> x[U];
#pragma unroll
    for (int u = 0; u < U; ++u) on[u] = j + u * kThreads < groups ? mask_group<kind, N>(mask, (j + u * kThreads) * N, mask_aligned) : 0;
#pragma unroll
    for (int u = 0; u < U; ++u)
      if (on[u]) x[u] = load_group<F, N>(from + (j + u * kThreads) * N, from_aligned);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (j + u * kThreads >= groups) continue;
      Group<O, N> out;
#pragma unroll
      for (int k = 0; k < N; ++k) out.at[k] = kept<O>(x[u].at[k], on[u] >> k & 1);
      store_group(to + (j + u * kThreads) * N, out, to_aligned);
    }
  }
  const int i = groups * N + self;  // fewer than N are left
  if (i < count) to[i] = kept<O>(from[i], mask_group<kind, 1>(mask, i, false));
}

template <class F, class O, int capacity>
__global__ void __launch_bounds__(kThreads, kWeightBlocksPerSm<F, O>)
    masked_weight_kernel(const __grid_constant__ WeightTable<capacity> table, const __grid_constant__ ListPlan plan) {
  for (int64_t k = blockIdx.x; k < plan.pieces; k += gridDim.x) {
    const Piece piece = piece_at(table.entry, plan, k);
    const WeightEntry& e = table.entry[piece.tensor];
    if (e.kind == MaskKind::bools) weight_piece<MaskKind::bools, F, O>(e, piece.begin, piece.end);
    else if (e.kind == MaskKind::bits) weight_piece<MaskKind::bits, F, O>(e, piece.begin, piece.end);
    else weight_piece<MaskKind::none, F, O>(e, piece.begin, piece.end);
  }
}

}  // namespace sparsekern::cuda
