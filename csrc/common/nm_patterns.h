// The 90 patterns of a 4 x 4 block with two kept in every row and column, in the order of their rows' kept columns:
// (0, 1) before (0, 2) before (0, 3) before (1, 2) before (1, 3) before (2, 3), the first row first. Shared by host and device.
#pragma once
#include <cstdint>

namespace sparsekern {

constexpr int kTransposablePatterns = 90;
constexpr uint8_t kKeptPairs[6][2] = {{0, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 3}};

// The largest magnitude that counts as it is: eight of them add up without overflow.
template <class A>
constexpr A transposable_limit() {
  if constexpr (sizeof(A) == 8) return 0x1p1020;
  else return 0x1p124f;
}

struct TransposablePatterns {
  uint8_t top[kTransposablePatterns] = {}, bottom[kTransposablePatterns] = {};  // 6 p + q for two rows that keep pairs p and q
  uint16_t bits[kTransposablePatterns] = {};                                    // element (i, j) is bit 4 i + j
};

constexpr TransposablePatterns transposable_patterns() {
  TransposablePatterns found;
  int count = 0;
  for (int number = 0; number < 6 * 6 * 6 * 6; ++number) {
    const int rows[4] = {number / 216, number / 36 % 6, number / 6 % 6, number % 6};
    int columns[4] = {};
    int bits = 0;
    for (int i = 0; i < 4; ++i) {
      for (int side = 0; side < 2; ++side) {
        const int j = kKeptPairs[rows[i]][side];
        ++columns[j];
        bits |= 1 << (4 * i + j);
      }
    }
    if (columns[0] != 2 || columns[1] != 2 || columns[2] != 2 || columns[3] != 2) continue;
    found.top[count] = static_cast<uint8_t>(number / 36);
    found.bottom[count] = static_cast<uint8_t>(number % 36);
    found.bits[count++] = static_cast<uint16_t>(bits);
  }
  return found;
}
constexpr TransposablePatterns kTransposable = transposable_patterns();

}  // namespace sparsekern
