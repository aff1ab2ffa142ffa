// The best of the 90 patterns of a 4 x 4 block that keep two of four in every row and column, by the sum of magnitudes.
// A thread has one block in registers. Row pairs and half patterns are added up once: 24 and 72 sums, then one and its comparison
// for each pattern. Bytes per fp32 element: 5; 28 operations per element, about as long as the bytes take.
// State: compiled for sm_80 and sm_90a and run under the emulator of csrc/simt; not yet run on a GPU, no time measured.
//
// budget: nm_transposable_kernel 64
// promise: nm_transposable_kernel no-fp64
#pragma once
#include <utility>

#include "common/nm_patterns.h"
#include "cuda/mask_bytes.cuh"
#include "cuda/nm_keys.cuh"

namespace sparsekern::cuda {

constexpr float kTransposableLimit = transposable_limit<float>();

// What is too large to be added up safely is cut off; NaN is 0.
__device__ __forceinline__ float bounded_magnitude(float x) {
  const float size = fabsf(x);
  return size > kTransposableLimit ? kTransposableLimit : size == size ? size : 0.f;
}

template <int p>
__device__ __forceinline__ void try_pattern(const float (&half)[2][36], float& best, unsigned& which) {
  constexpr int top = kTransposable.top[p], bottom = kTransposable.bottom[p];
  constexpr unsigned bits = kTransposable.bits[p];
  const float sum = __fadd_rn(half[0][top], half[1][bottom]);
  if (p > 0 && !(sum > best)) return;
  best = sum;
  which = bits;
}

template <int... p>
__device__ __forceinline__ unsigned best_pattern(const float (&half)[2][36], std::integer_sequence<int, p...>) {
  float best = 0;
  unsigned which = 0;
  (try_pattern<p>(half, best, which), ...);
  return which;
}

template <int... p>
__device__ __forceinline__ void pair_sums(const float (&x)[4], float (&sum)[6], std::integer_sequence<int, p...>) {
  constexpr int left[] = {kKeptPairs[p][0]...}, right[] = {kKeptPairs[p][1]...};
  ((sum[p] = __fadd_rn(x[left[p]], x[right[p]])), ...);
}

// A thread has one block; neighbouring threads neighbouring blocks, so that its four rows are read whole.
template <class T>
__global__ void __launch_bounds__(kTileThreads, 4) nm_transposable_kernel(const T* x, uint8_t* mask, int64_t bands, int64_t blocks) {
  const bool aligned = is_aligned(x, 4 * sizeof(T)), mask_aligned = is_aligned(mask, 4);
  const int64_t all = bands * blocks, stride = static_cast<int64_t>(gridDim.x) * kTileThreads;
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * kTileThreads + threadIdx.x; b < all; b += stride) {
    const Divided at = divide(b, blocks);
    const int64_t begin = (at.quotient * 4 * blocks + at.remainder) * 4;  // a row has 4 blocks elements
    Group<T, 4> raw[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) raw[i] = load_group<T, 4, Cache::stream>(x + begin + i * 4 * blocks, aligned);
    float pair[4][6], half[2][36];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float row[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) row[k] = bounded_magnitude(to_float(raw[i].at[k]));
      pair_sums(row, pair[i], std::make_integer_sequence<int, 6>());
    }
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int p = 0; p < 36; ++p) half[h][p] = __fadd_rn(pair[2 * h][p / 6], pair[2 * h + 1][p % 6]);
    const unsigned which = best_pattern(half, std::make_integer_sequence<int, kTransposablePatterns>());
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned bytes = bits_to_bytes(which >> 4 * i & 15);
      uint8_t* const to = mask + begin + i * 4 * blocks;
      if (mask_aligned) {
        *reinterpret_cast<unsigned*>(to) = bytes;
      } else {
#pragma unroll
        for (int k = 0; k < 4; ++k) to[k] = bytes >> 8 * k & 1;
      }
    }
  }
}

}  // namespace sparsekern::cuda
