// bits[w] = sum over k of mask[32 w + k] << k, its inverse, and population counts of lists of masks in either form.
// Packing and unpacking: a thread turns 16 bools into half a word or back, several at a time, so that a warp reads and
// writes whole sectors. Counts: a persistent grid walks pieces of a whole list (launch.h); a block adds its counts when it
// leaves a tensor, in 64-bit integers, whose order does not matter.
// Bytes: 1 + 1/8 per element to pack or unpack, 1 or 1/8 per element and mask to count; bandwidth-bound.
// State: compiled for sm_80 and sm_90a and run under the emulator of csrc/simt; not yet run on a GPU, no time measured.
//
// budget: pack_mask_kernel 48
// budget: unpack_mask_kernel 48
// budget: mask_stats_kernel 64
// promise: pack_mask_kernel LDG.E.128 no-fp64
// promise: unpack_mask_kernel STG.E.128 no-fp64
// promise: mask_stats_kernel LDG.E.128 no-fp64
#pragma once
#include "cuda/collective.cuh"
#include "cuda/mask_bits.h"
#include "cuda/mask_bytes.cuh"
#include "cuda/vector_io.cuh"

namespace sparsekern::cuda {

constexpr int kPackBlocksPerSm = 5, kStatsBlocksPerSm = 4;
constexpr int kPackUnroll = 4;  // groups of 16 elements of a thread
constexpr int kSmallStatsTable = 80, kLargeStatsTable = 672;

template <int capacity>
struct StatsTable {
  StatsEntry entry[capacity];
};
static_assert(sizeof(StatsTable<kLargeStatsTable>) + sizeof(ListPlan) <= kParameterBytes);

// Each byte 0 or 1, whatever nonzero byte stood for true.
__device__ __forceinline__ unsigned ones_of(unsigned bytes) {
  bytes |= bytes >> 4;
  bytes |= bytes >> 2;
  bytes |= bytes >> 1;
  return bytes & 0x01010101u;
}

// Halves of words: element 16 h is bit 0 of half h, as the words are little-endian.
__global__ void __launch_bounds__(kThreads, kPackBlocksPerSm) pack_mask_kernel(const uint8_t* mask, uint16_t* bits, int64_t numel) {
  constexpr int U = kPackUnroll;
  const bool aligned = is_aligned(mask, 16);
  const int64_t whole = numel / 16, halves = (numel + 31) / 32 * 2, stride = static_cast<int64_t>(gridDim.x) * kThreads * U;
  for (int64_t h = static_cast<int64_t>(blockIdx.x) * kThreads * U + threadIdx.x; h < halves; h += stride) {
    Group<uint8_t, 16> x[U];
#pragma unroll
    for (int u = 0; u < U; ++u)
      if (h + u * kThreads < whole) x[u] = load_group<uint8_t, 16, Cache::stream>(mask + (h + u * kThreads) * 16, aligned);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int64_t at = h + u * kThreads;
      if (at >= halves) continue;
      unsigned half = 0;
      if (at < whole) {
        const unsigned* words = reinterpret_cast<const unsigned*>(&x[u]);
#pragma unroll
        for (int k = 0; k < 4; ++k) half |= bytes_to_bits(words[k]) << 4 * k;
      } else {
        for (int64_t i = at * 16; i < min(numel, at * 16 + 16); ++i) half |= (mask[i] != 0 ? 1u : 0u) << (i & 15);
      }
      bits[at] = static_cast<uint16_t>(half);
    }
  }
}

__global__ void __launch_bounds__(kThreads, kPackBlocksPerSm) unpack_mask_kernel(const uint32_t* bits, uint8_t* mask, int64_t numel) {
  constexpr int U = kPackUnroll;
  const bool aligned = is_aligned(mask, 16);
  const int64_t groups = (numel + 15) / 16, stride = static_cast<int64_t>(gridDim.x) * kThreads * U;
  for (int64_t g = static_cast<int64_t>(blockIdx.x) * kThreads * U + threadIdx.x; g < groups; g += stride) {
    unsigned half[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int64_t at = g + u * kThreads;
      half[u] = at < groups ? bits[at >> 1] >> (at & 1) * 16 & 0xffff : 0;
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int64_t begin = (g + u * kThreads) * 16;
      if (begin + 16 <= numel) {
        Group<uint8_t, 16> bytes;
#pragma unroll
        for (int k = 0; k < 4; ++k) reinterpret_cast<unsigned*>(&bytes)[k] = bits_to_bytes(half[u] >> 4 * k & 15);
        store_group(mask + begin, bytes, aligned);
      } else {
        for (int64_t i = begin; i < numel; ++i) mask[i] = half[u] >> (i - begin) & 1;
      }
    }
  }
}

// |a|, |b|, |a and b| of what a thread has seen. A block meets fewer than 2^32 elements of a tensor.
struct Counts {
  unsigned a = 0, b = 0, both = 0;
};

template <bool packed>
__device__ __forceinline__ void count_word(unsigned a, unsigned b, Counts& counts) {
  if (!packed) a = ones_of(a), b = ones_of(b);
  counts.a += __popc(a);
  counts.b += __popc(b);
  counts.both += __popc(a & b);
}

// Words begin .. end by the whole block, in groups of 16 bytes, four at a time.
template <bool packed>
__device__ __forceinline__ void count_piece(const StatsEntry& e, int64_t begin, int64_t end, Counts& counts) {
  using T = std::conditional_t<packed, uint32_t, uint8_t>;
  constexpr int N = 16 / sizeof(T), U = 4;
  if (!packed) begin *= 4, end = min(end * 4, e.count);
  const T *a = static_cast<const T*>(e.a) + begin, *b = e.b ? static_cast<const T*>(e.b) + begin : nullptr;
  const bool a_aligned = is_aligned(a, 16), b_aligned = is_aligned(b, 16);
  const int count = static_cast<int>(end - begin), groups = count / N, self = static_cast<int>(threadIdx.x);
  for (int j = self; j < groups; j += kThreads * U) {
    Group<T, N> x[U] = {}, y[U] = {};
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (j + u * kThreads >= groups) continue;
      x[u] = load_group<T, N, Cache::stream>(a + (j + u * kThreads) * N, a_aligned);
      if (b) y[u] = load_group<T, N, Cache::stream>(b + (j + u * kThreads) * N, b_aligned);
    }
#pragma unroll
    for (int u = 0; u < U; ++u)
#pragma unroll
      for (int k = 0; k < 4; ++k)
        count_word<packed>(reinterpret_cast<const unsigned*>(&x[u])[k], reinterpret_cast<const unsigned*>(&y[u])[k], counts);
  }
  const int i = groups * N + self;  // fewer than 16 are left
  if (i < count) count_word<packed>(a[i], b ? b[i] : 0, counts);
}

// Adds the block's counts to the tensor's row; all threads take part.
__device__ __forceinline__ void add_counts(const StatsEntry& e, Counts& counts, unsigned long long (&scratch)[kThreads / 32]) {
  using Sum = unsigned long long;
  const Sum a = block_sum<kThreads, Sum>(counts.a, scratch);
  Sum b = 0, both = 0;
  if (e.b) {
    b = block_sum<kThreads, Sum>(counts.b, scratch);
    both = block_sum<kThreads, Sum>(counts.both, scratch);
  }
  if (threadIdx.x == 0) {
    Sum* row = reinterpret_cast<Sum*>(e.row);
    atomicAdd(row, a);
    if (e.b) {
      atomicAdd(row + 1, b);
      atomicAdd(row + 2, both);
      atomicAdd(row + 3, a + b - 2 * both);
    }
  }
  counts = Counts();
}

template <int capacity>
__global__ void __launch_bounds__(kThreads, kStatsBlocksPerSm)
    mask_stats_kernel(const __grid_constant__ StatsTable<capacity> table, const __grid_constant__ ListPlan plan) {
  __shared__ unsigned long long scratch[kThreads / 32];
  Counts counts;
  int tensor = -1;
  for (int64_t k = blockIdx.x; k < plan.pieces; k += gridDim.x) {
    const Piece piece = piece_at(table.entry, plan, k);
    if (piece.begin == piece.end) continue;  // an empty remainder
    if (tensor >= 0 && piece.tensor != tensor) add_counts(table.entry[tensor], counts, scratch);
    tensor = piece.tensor;
    if (table.entry[tensor].packed) count_piece<true>(table.entry[tensor], piece.begin, piece.end, counts);
    else count_piece<false>(table.entry[tensor], piece.begin, piece.end, counts);
  }
  if (tensor >= 0) add_counts(table.entry[tensor], counts, scratch);
}

}  // namespace sparsekern::cuda
