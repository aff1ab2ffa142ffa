// out = weight where the mask is on, +0 elsewhere, rounded once to out's type; equal types only move bits.
// A persistent grid walks pieces of a whole list (launch.h); a thread asks for up to 64 bytes of weight before it uses any.
// Bytes per element: weight read, out written, mask: 8 + 1 (bool) or 8 + 1/8 (bits) in fp32; bandwidth-bound. A group
// without an active bit is not read: sectors of 32 B drop out where all of their groups do.
// State: compiled for sm_80 and sm_90a and run under the emulator of csrc/simt; not yet run on a GPU, no time measured.
//
// budget: masked_weight_kernel 64
// promise: masked_weight_kernel LDG.E.128 STG.E.128 no-fp64
#pragma once
#include "cuda/masked_weight.h"
#include "cuda/vector_io.cuh"

namespace sparsekern::cuda {

template <int capacity>
struct WeightTable {
  WeightEntry entry[capacity];
};

// 64 KB in flight per SM, 32 KB where halves are converted.
constexpr int kWeightBlocksPerSm = 4;
constexpr int kSmallWeightTable = 80, kLargeWeightTable = 816;
static_assert(sizeof(WeightTable<kLargeWeightTable>) + sizeof(ListPlan) <= kParameterBytes);

// F and O are types of vector_io.cuh, or equal unsigned integers: then nothing is rounded and a NaN keeps its bits.
template <class O, class F>
__device__ __forceinline__ O kept(F x, bool inside) {
  if constexpr (std::is_same_v<F, O>) return inside ? x : F{};
  else return from_float<O>(inside ? to_float(x) : 0.f);
}

template <class O, class F, int N>
__device__ __forceinline__ Group<O, N> kept_group(const Group<F, N>& x, unsigned on) {
  Group<O, N> out;
  if constexpr (std::is_same_v<F, O> && sizeof(F) == 2) {  // two at a time
#pragma unroll
    for (int k = 0; k < N / 2; ++k) {
      const unsigned pair = (on >> 2 * k & 1 ? 0xffffu : 0u) | (on >> 2 * k & 2 ? 0xffff0000u : 0u);
      reinterpret_cast<unsigned*>(&out)[k] = reinterpret_cast<const unsigned*>(&x)[k] & pair;
    }
  } else {
#pragma unroll
    for (int k = 0; k < N; ++k) out.at[k] = kept<O>(x.at[k], on >> k & 1);
  }
  return out;
}

// One piece by the whole block. It starts at a multiple of 1024 elements: groups never cross into a second mask word.
template <MaskKind kind, class F, class O>
__device__ __forceinline__ void weight_piece(const WeightEntry& e, int64_t begin, int64_t end) {
  constexpr int N = 16 / (sizeof(F) < sizeof(O) ? sizeof(F) : sizeof(O));
  constexpr int U = sizeof(F) == 2 && !std::is_same_v<F, O> ? 2 : 64 / (N * sizeof(F));  // unpacking halves takes registers
  const F* from = static_cast<const F*>(e.from) + begin;
  O* to = static_cast<O*>(e.to) + begin;
  const void* mask = static_cast<const char*>(e.mask) + (kind == MaskKind::bits ? begin / 8 : begin);
  const bool from_aligned = is_aligned(from, 16), to_aligned = is_aligned(to, 16), mask_aligned = is_aligned(mask, 4);
  const int count = static_cast<int>(end - begin), groups = count / N, self = static_cast<int>(threadIdx.x);
  for (int j = self; j < groups; j += kThreads * U) {
    RawMask raw[U];
    unsigned on[U];
    Group<F, N> x[U];
#pragma unroll
    for (int u = 0; u < U; ++u)
      if (j + u * kThreads < groups) raw[u] = load_mask<N>(kind, mask, (j + u * kThreads) * N, mask_aligned);
#pragma unroll
    for (int u = 0; u < U; ++u) on[u] = j + u * kThreads < groups ? mask_bits<N>(kind, raw[u], (j + u * kThreads) * N) : 0;
#pragma unroll
    for (int u = 0; u < U; ++u)
      if (on[u]) x[u] = load_group<F, N>(from + (j + u * kThreads) * N, from_aligned);
#pragma unroll
    for (int u = 0; u < U; ++u)
      if (j + u * kThreads < groups) store_group(to + (j + u * kThreads) * N, kept_group<O>(x[u], on[u]), to_aligned);
  }
  const int i = groups * N + self;  // fewer than N are left
  if (i < count) to[i] = kept<O>(from[i], mask_bits<1>(kind, load_mask<1>(kind, mask, i, false), i));
}

template <class F, class O, int capacity>
__global__ void __launch_bounds__(kThreads, kWeightBlocksPerSm)
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
