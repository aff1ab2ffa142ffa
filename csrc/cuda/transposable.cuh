// The best of the 90 patterns of a 4 x 4 block with two kept in every row and column, by one thread, in registers.
#pragma once
#include <utility>

#include "common/nm_patterns.h"
#include "simt/simt.h"

namespace sparsekern::cuda {

constexpr float kLargestCounted = transposable_limit<float>();

// A magnitude as it counts: cut off where eight could overflow, 0 for NaN.
__device__ __forceinline__ float counted_magnitude(float x) {
  const float size = x < 0.f ? -x : x;
  return size > kLargestCounted ? kLargestCounted : size == size ? size : 0.f;
}

struct BestPattern {
  float sum = -1.f;
  unsigned bits = 0;

  // The sums of two elements of each row by their pairs, in the fixed order of the reference; the first of equal ones stays.
  template <int p>
  __device__ __forceinline__ void consider(const float (&pair)[4][6]) {
    constexpr int top = kTransposable.top[p], bottom = kTransposable.bottom[p];
    constexpr unsigned pattern = kTransposable.bits[p];
    const float upper = __fadd_rn(pair[0][top / 6], pair[1][top % 6]), lower = __fadd_rn(pair[2][bottom / 6], pair[3][bottom % 6]);
    const float here = __fadd_rn(upper, lower);
    const bool better = here > sum;
    sum = better ? here : sum;
    bits = better ? pattern : bits;
  }
  template <int... p>
  __device__ __forceinline__ void consider_all(const float (&pair)[4][6], std::integer_sequence<int, p...>) {
    (consider<p>(pair), ...);
  }
};

// Element (i, j) is bit 4 i + j. `x`: magnitudes as they count.
__device__ __forceinline__ unsigned best_transposable(const float (&x)[4][4]) {
  float pair[4][6];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    pair[i][0] = __fadd_rn(x[i][0], x[i][1]);
    pair[i][1] = __fadd_rn(x[i][0], x[i][2]);
    pair[i][2] = __fadd_rn(x[i][0], x[i][3]);
    pair[i][3] = __fadd_rn(x[i][1], x[i][2]);
    pair[i][4] = __fadd_rn(x[i][1], x[i][3]);
    pair[i][5] = __fadd_rn(x[i][2], x[i][3]);
  }
  BestPattern best;
  best.consider_all(pair, std::make_integer_sequence<int, kTransposablePatterns>());
  return best.bits;
}

}  // namespace sparsekern::cuda
