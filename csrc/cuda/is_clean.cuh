// clean = every element outside its mask is +0 or -0: the promise of assume_clean, for tests.
// A persistent grid walks pieces of a whole list (launch.h); whoever finds a hidden value writes 0, no thread writes anything else.
// Bytes per element: 4 + mask in fp32; meant to be right, not fast.
// State: compiled for sm_80 and sm_90a and run under the emulator of csrc/simt; not yet run on a GPU, no time measured.
//
// budget: is_clean_kernel 48
// promise: is_clean_kernel LDG.E.128 no-fp64
#pragma once
#include "cuda/is_clean.h"
#include "cuda/vector_io.cuh"

namespace sparsekern::cuda {

constexpr int kCleanBlocksPerSm = 5, kCleanTable = 80;

struct CleanTable {
  CleanEntry entry[kCleanTable];
};

// W is an unsigned integer of the elements' size: all but the sign bit counts, so NaN does.
template <MaskKind kind, class W, int N>
__device__ __forceinline__ bool any_hidden(const W* data, const void* mask, int i, bool data_aligned, bool mask_aligned) {
  const unsigned on = mask_bits<N>(kind, load_mask<N>(kind, mask, i, mask_aligned), i);
  if (on == (1u << N) - 1) return false;
  const Group<W, N> x = load_group<W, N, Cache::stream>(data + i, data_aligned);
  bool found = false;
#pragma unroll
  for (int k = 0; k < N; ++k) found |= !(on >> k & 1) && static_cast<W>(x.at[k] << 1) != 0;
  return found;
}

template <MaskKind kind, class W>
__device__ __forceinline__ bool hidden_in_piece(const CleanEntry& e, int64_t begin, int64_t end) {
  constexpr int N = 16 / sizeof(W);
  const W* data = static_cast<const W*>(e.data) + begin;
  const void* mask = static_cast<const char*>(e.mask) + (kind == MaskKind::bits ? begin / 8 : begin);
  const bool data_aligned = is_aligned(data, 16), mask_aligned = is_aligned(mask, 4);
  const int count = static_cast<int>(end - begin), groups = count / N, self = static_cast<int>(threadIdx.x);
  bool found = false;
  for (int j = self; j < groups; j += kThreads) found |= any_hidden<kind, W, N>(data, mask, j * N, data_aligned, mask_aligned);
  const int i = groups * N + self;  // fewer than N are left
  if (i < count) found |= any_hidden<kind, W, 1>(data, mask, i, false, false);
  return found;
}

template <class W>
__global__ void __launch_bounds__(kThreads, kCleanBlocksPerSm)
    is_clean_kernel(const __grid_constant__ CleanTable table, const __grid_constant__ ListPlan plan, bool* clean) {
  for (int64_t k = blockIdx.x; k < plan.pieces; k += gridDim.x) {
    const Piece piece = piece_at(table.entry, plan, k);
    const CleanEntry& e = table.entry[piece.tensor];
    const bool found = e.kind == MaskKind::bools  ? hidden_in_piece<MaskKind::bools, W>(e, piece.begin, piece.end)
                       : e.kind == MaskKind::bits ? hidden_in_piece<MaskKind::bits, W>(e, piece.begin, piece.end)
                                                  : false;
    if (found) *clean = false;
  }
}

}  // namespace sparsekern::cuda
