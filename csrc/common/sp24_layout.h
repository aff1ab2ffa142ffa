// A 2:4 matrix packed for sparse tensor cores: of every four columns two values, and four bits that say where they stand. Four groups
// make a 16-bit word of metadata. Shared by host and device.
#pragma once
#include <cstdint>

#include "common/keys.h"

namespace sparsekern {

constexpr int64_t kSp24Rows = 32, kSp24Cols = 64;  // what sides must divide by

// Where word w of row r stands among the words of a matrix with `rows` rows and `words` words in each. sm80: tiles of 32 rows and
// 2 words, down the rows, then to the right; rows 8 apart lie together, then the two words, then rows 16 apart.
SK_HOST_DEVICE inline int64_t sp24_word(bool sm80, int64_t rows, int64_t words, int64_t r, int64_t w) {
  if (!sm80) return r * words + w;
  return (w >> 1) * 2 * rows + (r >> 5) * 64 + (r & 7) * 8 + (r >> 4 & 1) * 4 + (w & 1) * 2 + (r >> 3 & 1);
}

}  // namespace sparsekern
