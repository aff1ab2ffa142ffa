// Places of a matrix that a pattern does not hold: those of a list, without repeats and sorted, or all.
// setdiff: the places are grouped by row (csr_rows.cuh). A block marks a row's columns in shared memory, wipes those of the pattern, and
// reads the marks off in order: no sort, and the order within a group does not show. Then the rows are put together: every output looks
// up its row by binary search over the running counts, which neighbours share.
// Bytes: 44 a place (28 to group, 4 read, 4 written and read, 8 written) and 4 a nonzero. A million places in 4096^2 at 90 %: 51 MB, most of
// it in L2: 15 us. Expected: 30 us, since each of the seven launches waits for loads and atomics rather than for bandwidth.
// complement: output p finds its row and its column by two binary searches; 8 B written an output.
// State: compiled for sm_80 and sm_90a and run under the emulator of csrc/simt; not yet run on a GPU, no time measured.
//
// budget: setdiff_rows_kernel 56
// budget: setdiff_emit_kernel 40
// budget: complement_kernel 40
// promise: setdiff_rows_kernel no-fp64
// promise: setdiff_emit_kernel no-fp64
// promise: complement_kernel no-fp64
#pragma once
#include "cuda/csr_device.cuh"
#include "cuda/csr_setdiff.h"

namespace sparsekern::cuda {

struct SetDiffRows {
  CsrView pattern;
  const Count* ends;     // of the buckets
  const uint32_t* item;  // their columns
  int32_t* fresh;        // the new columns of row r, sorted, from ends[r - 1] on
  Count* counts;         // how many
};

template <int threads>
__global__ void __launch_bounds__(threads) setdiff_rows_kernel(const SetDiffRows args) {
  __shared__ RowMarks marks;
  const int self = static_cast<int>(threadIdx.x);
  clear_marks(marks, kMarkWords);
  for (int64_t r = blockIdx.x; r < args.pattern.rows; r += gridDim.x) {
    const int64_t begin = static_cast<int64_t>(begin_of(args.ends, r)), end = static_cast<int64_t>(args.ends[r]);
    const int64_t active = crow_at(args.pattern, r), active_end = crow_at(args.pattern, r + 1);
    int32_t* fresh = args.fresh + begin;
    uint32_t base = begin < end ? 0 : kNoColumn;
    while (base != kNoColumn) {
      begin_window(marks);
      MarkRange range;
      for_entries<threads>(begin, end, [&](int64_t i) { return args.item[i]; }, [&](uint32_t column) { mark(marks, base, column, range); });
      const int words = end_marks(marks, range);
      for_entries<threads>(
          active, active_end, [&](int64_t e) { return static_cast<uint32_t>(args.pattern.col[e]) - base; },
          [&](uint32_t at) {
            if (at < static_cast<uint32_t>(words) * 32) atomicAnd(&marks.bits[at >> 5], ~(1u << (at & 31)));
          });
      __syncthreads();
      const uint32_t found = rank_marks<threads>(marks, words);
      for (int w = self; w < words; w += threads) {
        int32_t* out = fresh + marks.before[w];
        for (uint32_t left = marks.bits[w]; left != 0; left &= left - 1)
          *out++ = static_cast<int32_t>(base + 32 * static_cast<uint32_t>(w) + static_cast<uint32_t>(__ffs(static_cast<int>(left)) - 1));
      }
      fresh += found;
      base = end_window(marks, words);
    }
    if (self == 0) args.counts[r] = static_cast<Count>(fresh - (args.fresh + begin));
  }
}

__global__ void __launch_bounds__(kThreads) setdiff_emit_kernel(const SetDiff args, const Count* ends, const int32_t* fresh, const Count* new_ends) {
  const int64_t n_rows = args.pattern.rows;
  const Count total = begin_of(new_ends, n_rows);
  for (int64_t p = grid_thread(); p < args.count; p += grid_threads()) {
    int64_t row = -1;
    int32_t col = -1;
    if (static_cast<Count>(p) < total) {
      row = first_where(0, n_rows - 1, [&](int64_t r) { return new_ends[r] > static_cast<Count>(p); });
      col = fresh[begin_of(ends, row) + (static_cast<Count>(p) - begin_of(new_ends, row))];
    }
    args.out_rows[p] = static_cast<int32_t>(row);
    args.out_cols[p] = col;
  }
  if (grid_thread() == 0) {
    *args.out_count = static_cast<int64_t>(total);
    if (args.after != nullptr) *args.after = {total, args.before->drawn + static_cast<Count>(args.count) - args.before->found};
  }
}

// Row r begins at output r * cols - crow[r]; before column c of it stand c minus the active columns below c.
__global__ void __launch_bounds__(kThreads)
    complement_kernel(const CsrView pattern, int64_t count, int32_t* rows, int32_t* cols, int64_t* out_count) {
  for (int64_t p = grid_thread(); p < count; p += grid_threads()) {
    const int64_t row = first_where(0, pattern.rows - 1, [&](int64_t r) { return (r + 1) * pattern.cols - crow_at(pattern, r + 1) > p; });
    const int64_t begin = crow_at(pattern, row), rank = p - (row * pattern.cols - begin);
    const int64_t active = first_where(begin, crow_at(pattern, row + 1), [&](int64_t e) { return pattern.col[e] - (e - begin) > rank; }) - begin;
    rows[p] = static_cast<int32_t>(row);
    cols[p] = static_cast<int32_t>(rank + active);
  }
  if (grid_thread() == 0) *out_count = count;
}

}  // namespace sparsekern::cuda
