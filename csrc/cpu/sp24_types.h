// What packing and unpacking a 2:4 matrix are told, the same for every instruction set. U: the bits of an element.
#pragma once
#include <cstdint>

#include "common/mask_view.h"
#include "common/sp24_layout.h"

namespace sparsekern {

template <class U>
struct Sp24Packed {
  U* v;
  uint16_t* e;
  bool sm80;
  int64_t rows, cols;  // of the matrix; both divide by 32, and cols by 64
  bool past_cache;     // the result is too large to stay there; v and the matrix begin at whole cache lines

  uint16_t& word(int64_t r, int64_t w) const { return e[sp24_word(sm80, rows, cols / 16, r, w)]; }
};

template <class U>
struct Sp24Pack {
  const U* x;
  U infinity;  // its bits
  MaskView mask;
  Sp24Packed<U> out, turned;  // the transpose, or null in v
};

constexpr int64_t kSp24Band = 64;  // rows that a piece takes together where the transpose is packed, too

}  // namespace sparsekern
