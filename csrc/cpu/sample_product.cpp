// Checks, tables and registration of sample_product and gse_candidates; the draws are in sample_product.h.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <atomic>

#include "common/csr_edit_checks.h"
#include "common/philox.h"
#include "cpu/position_set.h"
#include "cpu/sample_table.h"

#define SK_KERNEL_FILE "cpu/sample_product.h"
#include "cpu/for_each_isa.h"

namespace sparsekern {
namespace {

// Returns the seed.
uint64_t check_arguments(const char* op, const at::Tensor& row_weights, const at::Tensor& col_weights, int64_t num_samples, const at::Tensor& seed) {
  check_sampling(op, row_weights, col_weights, num_samples, seed, at::kCPU);
  return static_cast<uint64_t>(*seed.const_data_ptr<int64_t>());
}

OwnedSampleTable table_of(const char* op, const char* name, const at::Tensor& weights) {
  const at::Tensor dense = weights.contiguous();
  const float* data = dense.const_data_ptr<float>();
  const int64_t n = dense.numel();
  check_some_weights(op, name, weights);
  for (int64_t i = 0; i < n; ++i) TORCH_CHECK_VALUE(!std::isinf(data[i]), op, ": ", name, ": expected finite weights, got ", data[i], " at ", i);
  return OwnedSampleTable(data, n);
}

struct Sampler {
  Sampler(const char* op, const at::Tensor& row_weights, const at::Tensor& col_weights, uint64_t seed)
      : rows_(table_of(op, "row_weights", row_weights)), cols_(table_of(op, "col_weights", col_weights)), seed_(seed) {}

  void draw(uint64_t first, int64_t count, int32_t* rows, int32_t* cols) const {
    const auto work = SK_PICK(draw_samples);
    at::parallel_for(0, count, 1 << 15,
                     [&](int64_t from, int64_t to) { work(rows_.view, cols_.view, seed_, first + from, to - from, rows + from, cols + from); });
  }

 private:
  OwnedSampleTable rows_, cols_;
  uint64_t seed_;
};

std::tuple<at::Tensor, at::Tensor> sample_product_cpu(const at::Tensor& row_weights, const at::Tensor& col_weights, int64_t num_samples,
                                                      const at::Tensor& seed) {
  const char* op = "sample_product";
  const uint64_t key = check_arguments(op, row_weights, col_weights, num_samples, seed);
  at::Tensor rows = at::empty({num_samples}, at::kInt), cols = at::empty({num_samples}, at::kInt);
  if (num_samples > 0)
    Sampler(op, row_weights, col_weights, key).draw(0, num_samples, rows.mutable_data_ptr<int32_t>(), cols.mutable_data_ptr<int32_t>());
  return {rows, cols};
}

// The inactive positions, all of them: those between the active columns of each row. Returns the first row whose columns do not
// rise, or -1; nothing is written then.
int64_t complement(const CsrPattern& p, int32_t* rows, int32_t* cols) {
  std::atomic<int64_t> fault{p.rows};
  const int64_t grain = std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(1, p.cols));
  at::parallel_for(0, p.rows, grain, [&](int64_t from, int64_t to) {
    for (int64_t r = from; r < to; ++r) {
      bool rises = true;
      for (int64_t e = p.crow[r] + 1; e < p.crow[r + 1]; ++e) rises &= p.col[e - 1] < p.col[e];
      int64_t before = fault.load();
      while (!rises && r < before && !fault.compare_exchange_weak(before, r)) {
      }
    }
  });
  if (fault.load() < p.rows) return fault.load();
  at::parallel_for(0, p.rows, grain, [&](int64_t from, int64_t to) {
    for (int64_t r = from; r < to; ++r) {
      int64_t at = r * p.cols - p.crow[r];
      int32_t next = 0;
      const auto fill_to = [&](int64_t end) {
        for (; next < end; ++next, ++at) rows[at] = static_cast<int32_t>(r), cols[at] = next;
      };
      for (int64_t e = p.crow[r]; e < p.crow[r + 1]; ++e) {
        fill_to(p.col[e]);
        next = p.col[e] + 1;
      }
      fill_to(p.cols);
    }
  });
  return -1;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> gse_candidates_cpu(const at::Tensor& row_weights, const at::Tensor& col_weights,
                                                                  const at::Tensor& crow, const at::Tensor& col, int64_t num_samples,
                                                                  const at::Tensor& seed, int64_t rounds) {
  const char* op = "gse_candidates";
  const uint64_t key = check_arguments(op, row_weights, col_weights, num_samples, seed);
  check_rounds(rounds);
  const CsrPattern pattern = checked_pattern(op, crow, col, row_weights.numel(), col_weights.numel());
  const int64_t inactive = pattern.rows * pattern.cols - pattern.nnz;
  const bool whole = pattern.nnz >= inactive;  // at least half of the matrix is active
  const int64_t length = whole ? std::max<int64_t>(inactive, 0) : num_samples;
  at::Tensor rows = at::empty({length}, at::kInt), cols = at::empty({length}, at::kInt), out_count = at::empty({}, at::kLong);
  int32_t* r = rows.mutable_data_ptr<int32_t>();
  int32_t* c = cols.mutable_data_ptr<int32_t>();
  int64_t count = 0;
  if (whole) {
    const int64_t bad = complement(pattern, r, c);
    TORCH_CHECK_VALUE(bad < 0, op, ": col: expected columns that rise within each row, got others in row ", bad);
    count = length;
  } else if (num_samples > 0) {
    const Sampler sampler(op, row_weights, col_weights, key);
    uint64_t drawn = 0;
    for (int64_t round = 0; round < rounds && count < std::min(num_samples, inactive); ++round) {
      sampler.draw(drawn, num_samples - count, r + count, c + count);
      drawn += num_samples - count;
      count = keep_new_positions(op, r, c, num_samples, pattern);
    }
  }
  *out_count.mutable_data_ptr<int64_t>() = count;
  return {rows, cols, out_count};
}

}  // namespace

TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("sample_product", &sample_product_cpu);
  m.impl("gse_candidates", &gse_candidates_cpu);
}

}  // namespace sparsekern
