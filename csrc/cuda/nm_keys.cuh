// How the N:M kernels rank: signed keys in the order of selection, and the n-th largest of a group in registers.
#pragma once
#include "cuda/launch.h"
#include "cuda/vector_io.cuh"

namespace sparsekern::cuda {

enum class NmOutput { bools, bits, apply };

constexpr int kAbsent = -0x7fffffff - 1, kNaNRank = kAbsent + 1;  // below every number

// Both sixteen-bit formats stand in the upper half of a word: then they differ from fp32 in the bits of infinity alone.
struct NmOrder {
  int infinity;
  bool use_abs;
};
inline NmOrder nm_order(DType type, bool use_abs) { return {type == DType::f16 ? 0x7c000000 : 0x7f800000, use_abs}; }

__device__ __forceinline__ uint32_t in_word(uint32_t bits) { return bits; }
__device__ __forceinline__ uint32_t in_word(uint16_t bits) { return static_cast<uint32_t>(bits) << 16; }
__device__ __forceinline__ void from_word(uint32_t word, uint32_t& bits) { bits = word; }
__device__ __forceinline__ void from_word(uint32_t word, uint16_t& bits) { bits = static_cast<uint16_t>(word >> 16); }

__device__ __forceinline__ int nm_key(uint32_t word, int infinity, bool use_abs) {
  const int size = static_cast<int>(word & 0x7fffffffu);
  if (size > infinity) return kNaNRank;
  return !use_abs && word >> 31 ? -size : size;
}

// The sense is the same for all: one branch for several keys.
template <int N>
__device__ __forceinline__ void nm_keys(NmOrder order, const uint32_t (&word)[N], int (&key)[N]) {
  if (order.use_abs) {
#pragma unroll
    for (int k = 0; k < N; ++k) key[k] = nm_key(word[k], order.infinity, true);
  } else {
#pragma unroll
    for (int k = 0; k < N; ++k) key[k] = nm_key(word[k], order.infinity, false);
  }
}

// Batcher's odd-even merge sort, largest first; P and K are known at compile time, so that keys stay in registers.
template <int W, int P = 1, int K = P>
__device__ __forceinline__ void sort_descending(int (&key)[W]) {
#pragma unroll
  for (int i = 0; i + K < W; ++i) {
    constexpr int from = K == P ? 0 : K;
    if (i < from || (i - from) % (2 * K) >= K || i / (2 * P) != (i + K) / (2 * P)) continue;
    const int above = max(key[i], key[i + K]), below = min(key[i], key[i + K]);
    key[i] = above;
    key[i + K] = below;
  }
  if constexpr (K > 1) sort_descending<W, P, K / 2>(key);
  else if constexpr (2 * P < W) sort_descending<W, 2 * P, 2 * P>(key);
}

// What is kept: all above `least`, and the first `equal` of those that equal it.
struct Threshold {
  int least = 0x7fffffff, equal = 0;

  __device__ __forceinline__ bool keeps(int key) { return key > least || (key == least && equal-- > 0); }
};

// Of the n largest keys, n no more than there are; the keys are sorted.
template <int W>
__device__ __forceinline__ Threshold nth_largest(int (&key)[W], int n) {
  sort_descending(key);
  Threshold t;
  int above = 0;  // keys above t.least
#pragma unroll
  for (int k = 0; k < W; ++k)
    if (k < n && (k == 0 || key[k] != t.least)) {
      t.least = key[k];
      above = k;
    }
  t.equal = n - above;
  return t;
}

// A tile of groups in shared memory, several to a thread where they are small, so that enough is in flight. A word of padding
// follows every 32, or threads that walk groups side by side would meet in the same banks.
constexpr int kTileThreads = 128;
template <int W>
constexpr int kGroupsPerThread = W < 16 ? 16 / W : 1;
template <int W>
constexpr int kTileGroups = kTileThreads * kGroupsPerThread<W>;
template <int W>
constexpr int kTileWords = kTileGroups<W> * W / 32 * 33;
template <int W>
constexpr int kTileBlocksPerSm = W == 64   ? 4
                                 : W == 32 ? 6
                                           : 8;  // what the registers of a sort leave room for
__device__ __forceinline__ int in_tile(int i) { return i + (i >> 5); }

// An index as quotient and remainder; most fit in 32 bits, where that is far cheaper.
struct Divided {
  int64_t quotient, remainder;
};
__device__ __forceinline__ Divided divide(int64_t a, int64_t b) {
  if ((a | b) >> 32 == 0) {
    const uint32_t q = static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
    return {q, static_cast<uint32_t>(a) - q * static_cast<uint32_t>(b)};
  }
  return {a / b, a % b};
}

}  // namespace sparsekern::cuda
