// The best of the 90 patterns of a 4 x 4 block with two kept in every row and column, by one thread, in registers. Sums of two elements
// of a row and of half a block are added up once: 24 and 72, then one and its comparison for each pattern.
#pragma once
#include <utility>

#include "common/nm_patterns.h"
#include "simt/simt.h"

namespace sparsekern::cuda {

constexpr float kTransposableLimit = transposable_limit<float>();

// A magnitude as it counts: cut off where eight could overflow, 0 for NaN.
__device__ __forceinline__ float bounded_magnitude(float x) {
  const float size = fabsf(x);
  return size > kTransposableLimit ? kTransposableLimit : size == size ? size : 0.f;
}

template <int... p>
__device__ __forceinline__ void pair_sums(const float (&x)[4], float (&sum)[6], std::integer_sequence<int, p...>) {
  constexpr int left[] = {kKeptPairs[p][0]...}, right[] = {kKeptPairs[p][1]...};
  ((sum[p] = __fadd_rn(x[left[p]], x[right[p]])), ...);
}

// The first of equal ones stays.
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
__device__ __forceinline__ unsigned try_patterns(const float (&half)[2][36], std::integer_sequence<int, p...>) {
  float best = 0;
  unsigned which = 0;
  (try_pattern<p>(half, best, which), ...);
  return which;
}

// Element (i, j) is bit 4 i + j. `x`: magnitudes as they count.
__device__ __forceinline__ unsigned best_pattern(const float (&x)[4][4]) {
  float pair[4][6], half[2][36];
#pragma unroll
  for (int i = 0; i < 4; ++i) pair_sums(x[i], pair[i], std::make_integer_sequence<int, 6>());
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int p = 0; p < 36; ++p) half[h][p] = __fadd_rn(pair[2 * h][p / 6], pair[2 * h + 1][p % 6]);
  return try_patterns(half, std::make_integer_sequence<int, kTransposablePatterns>());
}

}  // namespace sparsekern::cuda
