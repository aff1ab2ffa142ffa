// Checks, counting sort and registration of csr_setdiff; the work on a row is in csr_setdiff.h.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <atomic>
#include <memory>
#include <vector>

#include "common/csr_edit_checks.h"
#include "cpu/position_set.h"

#define SK_KERNEL_FILE "cpu/csr_setdiff.h"
#include "cpu/for_each_isa.h"

namespace sparsekern {
namespace {

constexpr const char* kOp = "csr_setdiff";
constexpr int64_t kShare = 1 << 16;     // pairs below which another thread does not pay
constexpr int64_t kWidest = 1 << 24;    // columns that a thread's map of marks may span
constexpr int64_t kRowGrain = 1 << 16;  // samples and active entries of the rows that one thread takes at a time

// Columns grouped by row: those of row r are columns[start[r]] to columns[start[r + 1] - 1], in any order.
struct Buckets {
  std::vector<uint32_t> start;
  std::unique_ptr<int32_t[]> columns;
};

// A counting sort. Shares depend on the number of threads, and so does the order within a row, but not its set.
Buckets by_row(const char* op, const int32_t* rows, const int32_t* cols, int64_t count, const CsrPattern& p) {
  const int64_t shares = std::clamp<int64_t>(count / kShare, 1, at::get_num_threads());
  std::vector<uint32_t> next(shares * p.rows);
  std::atomic<int64_t> outside{count};
  at::parallel_for(0, shares, 1, [&](int64_t from, int64_t to) {
    for (int64_t s = from; s < to; ++s) {
      uint32_t* here = next.data() + s * p.rows;
      const int64_t end = count * (s + 1) / shares, high = p.rows, wide = p.cols;  // stores to `here` could change all but locals
      for (int64_t i = count * s / shares; i < end; ++i) {
        if ((rows[i] | cols[i]) < 0) continue;
        if (rows[i] < high && cols[i] < wide) {
          ++here[rows[i]];
        } else {
          int64_t before = outside.load();
          while (i < before && !outside.compare_exchange_weak(before, i)) {
          }
        }
      }
    }
  });
  const int64_t bad = outside.load();
  TORCH_CHECK_VALUE(bad == count, op, ": rows, cols: expected positions inside ", p.rows, " x ", p.cols, ", got (", rows[std::min(bad, count - 1)],
                    ", ", cols[std::min(bad, count - 1)], ") at ", bad);
  Buckets b;
  b.start.resize(p.rows + 1);
  uint32_t total = 0;
  for (int64_t r = 0; r < p.rows; ++r) {
    b.start[r] = total;
    for (int64_t s = 0; s < shares; ++s) {
      const uint32_t here = next[s * p.rows + r];
      next[s * p.rows + r] = total;
      total += here;
    }
  }
  b.start[p.rows] = total;
  b.columns.reset(new int32_t[total]);
  at::parallel_for(0, shares, 1, [&](int64_t from, int64_t to) {
    for (int64_t s = from; s < to; ++s) {
      uint32_t* here = next.data() + s * p.rows;
      int32_t* columns = b.columns.get();
      const int64_t end = count * (s + 1) / shares;
      for (int64_t i = count * s / shares; i < end; ++i)
        if ((rows[i] | cols[i]) >= 0) columns[here[rows[i]]++] = cols[i];
    }
  });
  return b;
}

// The same as new_columns by sorting, for matrices too wide for a map.
int64_t new_columns_by_sort(int32_t* samples, int64_t count, const int32_t* active, int64_t actives) {
  std::sort(samples, samples + count);
  int32_t* end = std::unique(samples, samples + count);
  return std::remove_if(samples, end, [&](int32_t c) { return std::binary_search(active, active + actives, c); }) - samples;
}

}  // namespace

int64_t keep_new_positions(const char* op, int32_t* rows, int32_t* cols, int64_t count, const CsrPattern& p) {
  if (count == 0) return 0;
  Buckets b = by_row(op, rows, cols, count, p);
  std::vector<int64_t> first(p.rows + 1);
  const auto work = SK_PICK(new_columns);
  const int64_t grain = std::max<int64_t>(1, kRowGrain * p.rows / (count + p.nnz + 1));
  at::parallel_for(0, p.rows, grain, [&](int64_t from, int64_t to) {
    const bool mapped = p.cols <= kWidest;
    std::vector<uint8_t> marks(mapped ? (p.cols + 63) / 64 * 64 : 0);
    std::vector<uint64_t> summary(mapped ? (p.cols + 4095) / 4096 : 0);
    for (int64_t r = from; r < to; ++r) {
      int32_t* samples = b.columns.get() + b.start[r];
      const int32_t* active = p.col + p.crow[r];
      const int64_t count = b.start[r + 1] - b.start[r], actives = p.crow[r + 1] - p.crow[r];
      if (count == 0) continue;
      first[r + 1] =
          mapped ? work(samples, count, active, actives, marks.data(), summary.data(), p.cols) : new_columns_by_sort(samples, count, active, actives);
    }
  });
  for (int64_t r = 0; r < p.rows; ++r) first[r + 1] += first[r];
  const int64_t kept = first[p.rows];
  at::parallel_for(0, p.rows, grain, [&](int64_t from, int64_t to) {
    for (int64_t r = from; r < to; ++r) {
      std::fill(rows + first[r], rows + first[r + 1], static_cast<int32_t>(r));
      std::copy_n(b.columns.get() + b.start[r], first[r + 1] - first[r], cols + first[r]);
    }
  });
  std::fill(rows + kept, rows + count, -1);
  std::fill(cols + kept, cols + count, -1);
  return kept;
}

namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> csr_setdiff_cpu(const at::Tensor& rows, const at::Tensor& cols, const at::Tensor& crow,
                                                               const at::Tensor& col, int64_t n_cols) {
  check_places("rows", rows, rows.numel());
  check_places("cols", cols, rows.numel());
  const CsrPattern pattern = checked_pattern(kOp, crow, col, std::max<int64_t>(crow.numel() - 1, 0), n_cols);
  at::Tensor out_rows = rows.clone(at::MemoryFormat::Contiguous), out_cols = cols.clone(at::MemoryFormat::Contiguous);
  const int64_t count = keep_new_positions(kOp, out_rows.mutable_data_ptr<int32_t>(), out_cols.mutable_data_ptr<int32_t>(), rows.numel(), pattern);
  at::Tensor out_count = at::empty({}, at::kLong);
  *out_count.mutable_data_ptr<int64_t>() = count;
  return {out_rows, out_cols, out_count};
}

}  // namespace

TORCH_LIBRARY_IMPL(sparsekern, CPU, m) { m.impl("csr_setdiff", &csr_setdiff_cpu); }

}  // namespace sparsekern
