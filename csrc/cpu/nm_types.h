// What the N:M kernels on the CPU are told, the same for every instruction set.
#pragma once
#include <cstdint>

#include "cpu/csr_product.h"

namespace sparsekern {

// A dense array in memory order as [outer, length, inner]: groups of m lie along `length`, the last one of a line may be shorter.
// A unit is one or more groups next to each other, the last of them perhaps short; unit u of line o begins at length index
// first + u * width. The kernels take sixteen units at a time, a lane each, counted through (line, unit, inner).
struct NmUnits {
  int64_t outer, length, inner;
  int n, m;
  int64_t first, per_line;
  int width;  // at most 64
  int64_t lanes() const { return outer * per_line * inner; }
};

// out = W b + bias for the packed W [rows, cols]: value e of a row stands in column base[e] + index[e], the index row being
// shared by v rows.
template <class T, class N = Arith<T>>
struct NmProduct {
  const N* val;
  const uint8_t* index;
  const int32_t* base;
  int64_t per_row, v;
  const Arith<T>* bias;  // may be null
  Dense<const T> b;
  Dense<T> out;
};

}  // namespace sparsekern
