// The plan of a pattern: rows by length, and the transpose by one counting sort.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "common/csr_edit_checks.h"
#include "cpu/csr_pattern.h"

namespace sparsekern {
namespace {

using Four = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Four csr_plan_cpu(const at::Tensor& crow, const at::Tensor& col, int64_t rows, int64_t cols) {
  const CsrPattern p = checked_pattern("csr_plan", crow, col, rows, cols);
  check_plan_size(rows, p.nnz);
  at::Tensor row_order = at::empty({rows}, col.options()), row_t = at::empty({p.nnz}, col.options()), perm = at::empty({p.nnz}, col.options());

  int32_t* order = row_order.mutable_data_ptr<int32_t>();
  std::iota(order, order + rows, 0);
  std::stable_sort(order, order + rows, [&](int32_t a, int32_t b) { return p.crow[a + 1] - p.crow[a] > p.crow[b + 1] - p.crow[b]; });

  std::vector<int64_t> next(cols + 1, 0);  // where the next nonzero of each column goes
  for (int64_t e = 0; e < p.nnz; ++e) ++next[p.col[e] + 1];
  std::partial_sum(next.begin(), next.end(), next.begin());
  at::Tensor crow_t = at::empty({cols + 1}, col.options().dtype(at::kLong));
  std::copy(next.begin(), next.end(), crow_t.mutable_data_ptr<int64_t>());
  int32_t *to_row = row_t.mutable_data_ptr<int32_t>(), *to_perm = perm.mutable_data_ptr<int32_t>();
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t e = p.crow[r]; e < p.crow[r + 1]; ++e) {
      const int64_t at = next[p.col[e]]++;
      to_row[at] = static_cast<int32_t>(r);
      to_perm[at] = static_cast<int32_t>(e);
    }
  return {row_order, crow_t.to(crow.scalar_type()), row_t, perm};
}

}  // namespace

TORCH_LIBRARY_IMPL(sparsekern, CPU, m) { m.impl("csr_plan", &csr_plan_cpu); }

}  // namespace sparsekern
