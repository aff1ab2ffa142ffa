// The small types of the selection kernels, the same in every instruction set.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "common/keys.h"

namespace sparsekern {

// Half-precision scores are widened, which keeps their order; fp64 has keys of its own.
template <class T>
using KeyFormat = std::conditional_t<std::is_same_v<T, double>, Float64, Float32>;
template <class T>
using KeyOf = typename KeyFormat<T>::Key;

constexpr int64_t kBisected = 256;  // up to this many keys the threshold is bisected by counting
constexpr int kAttempts = 3;        // samples tried before the bracket is everything

// low <= high; keep_high: elements equal to `high` start as taken.
template <class Key>
struct Bracket {
  Key low, high;
  bool keep_high;
};

template <class Key>
struct Kth {
  Key key;
  int64_t ties;  // of the elements equal to key, so many are taken, at least 1
};

enum class Side { high, inside, low, missed };

// How many keys lie above the bracket, on its ends, and strictly inside it.
struct Split {
  int64_t above = 0, at_high = 0, inside = 0, at_low = 0;

  // Where the k-th largest lies.
  Side side(int64_t k) const {
    if (k <= above) return Side::missed;
    if (k <= above + at_high) return Side::high;
    if (k <= above + at_high + inside) return Side::inside;
    return k <= above + at_high + inside + at_low ? Side::low : Side::missed;
  }
};

// About n^(2/3): the sample and what it leaves inside the bracket then cost the same.
inline int64_t sample_size(int64_t n) {
  const double root = std::cbrt(static_cast<double>(n));
  return std::min<int64_t>(1 << 20, static_cast<int64_t>(root * root * 0.5) + 32);
}

// Keys of scratch that kth_largest needs for n keys.
inline int64_t scratch_keys(int64_t n) { return 2 * (n + 32); }

// One position in the i-th of m equal stretches of n elements, drawn by a hash, so that no regular pattern in the data can mislead.
inline int64_t sample_position(int64_t i, int64_t m, int64_t n, int attempt) {
  const double stretch = static_cast<double>(n) / static_cast<double>(m);
  const int64_t begin = static_cast<int64_t>(static_cast<double>(i) * stretch);
  const int64_t end = std::min(n, static_cast<int64_t>(static_cast<double>(i + 1) * stretch));
  uint64_t hash = (static_cast<uint64_t>(i) + static_cast<uint64_t>(attempt + 1) * 0x9e3779b97f4a7c15ull) * 0xd6e8feb86659fd93ull;
  hash ^= hash >> 32;
  hash *= 0xd6e8feb86659fd93ull;
  return begin + static_cast<int64_t>(((hash >> 32) * static_cast<uint64_t>(std::max<int64_t>(1, end - begin))) >> 32);
}

}  // namespace sparsekern
