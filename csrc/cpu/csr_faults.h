// What can be wrong with a sparse pattern, and where: torch-free, so that it can be tested alone. Nothing is read out of bounds,
// whatever the numbers say.
#pragma once
#include <algorithm>
#include <cstdint>

namespace sparsekern {

// The numbers are csr_validate's fault codes (sparsekern/ops/csr_edit.py).
enum class CsrFault : int64_t {
  none = 0,
  pointer_count,
  pointer_start,
  pointer_falls,
  pointer_end,
  column_range,
  column_order,
  column_twice,
  value_count,
  value_not_finite,
};

struct CsrFinding {
  CsrFault fault = CsrFault::none;
  int64_t row = -1, position = -1;
};

// The first place in [begin, end) whose number is outside [0, limit), or `end`.
inline int64_t first_outside(const int32_t* numbers, int64_t begin, int64_t end, int64_t limit) {
  constexpr int64_t kBlock = 4096;
  const uint32_t bound = static_cast<uint32_t>(std::clamp(limit, int64_t{0}, int64_t{1} << 31));
  for (int64_t from = begin; from < end; from += kBlock) {
    const int64_t to = std::min(from + kBlock, end);
    uint32_t bad = 0;  // no branch per number
    for (int64_t i = from; i < to; ++i) bad |= static_cast<uint32_t>(numbers[i]) >= bound;
    if (!bad) continue;
    while (static_cast<uint32_t>(numbers[from]) < bound) ++from;
    return from;
  }
  return end;
}

// `count` row pointers for `rows` rows: rows + 1 of them, from 0, never falling, to nnz.
template <class I>
CsrFinding pointer_fault(const I* crow, int64_t count, int64_t rows, int64_t nnz) {
  if (rows < 0 || count < 1 || count - 1 != rows) return {CsrFault::pointer_count, -1, -1};
  if (crow[0] != 0) return {CsrFault::pointer_start, 0, 0};
  for (int64_t r = 0; r < rows; ++r)
    if (crow[r] > crow[r + 1]) return {CsrFault::pointer_falls, r, r + 1};
  if (crow[rows] != nnz) return {CsrFault::pointer_end, rows - 1, rows};
  return {};
}

// The entries of rows [begin, end), the pointers being sound: range, order, duplicates; `finite(position)` of the values.
template <class I, class Finite>
CsrFinding entry_fault(const I* crow, const int32_t* col, int64_t cols, int64_t begin, int64_t end, const Finite& finite) {
  for (int64_t r = begin; r < end; ++r) {
    int64_t before = -1;
    for (int64_t e = crow[r]; e < crow[r + 1]; ++e) {
      const int64_t here = col[e];
      if (here < 0 || here >= cols) return {CsrFault::column_range, r, e};
      if (here == before) return {CsrFault::column_twice, r, e};
      if (here < before) return {CsrFault::column_order, r, e};
      if (!finite(e)) return {CsrFault::value_not_finite, r, e};
      before = here;
    }
  }
  return {};
}

}  // namespace sparsekern
