// Checks, shares and registration of csr_from_mask, csr_validate and csr_replace; the work is in csr_edit.h and csr_faults.h.
#include "cpu/csr_edit.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>
#include <c10/util/Half.h>
#include <torch/library.h>

#include <atomic>
#include <cmath>
#include <mutex>
#include <numeric>
#include <optional>
#include <tuple>
#include <vector>

#include "common/csr_edit_checks.h"
#include "cpu/csr_faults.h"
#include "cpu/csr_pattern.h"

namespace sparsekern {
namespace {

constexpr int64_t kWork = 1 << 16;  // elements that are worth a thread of their own

// Rows per thread for about kWork elements each.
int64_t grain(int64_t rows, int64_t elements) { return std::max<int64_t>(1, rows * kWork / std::max<int64_t>(1, elements)); }

at::Tensor narrowed(const at::Tensor& crow, at::ScalarType type, const char* op) {
  const int64_t nnz = crow.const_data_ptr<int64_t>()[crow.numel() - 1];
  TORCH_CHECK_VALUE(type == at::kLong || nnz < (int64_t{1} << 31), op, ": ", nnz, " nonzeros need int64 row pointers");
  return crow.to(type);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> csr_from_mask_cpu(const at::Tensor& mask, const std::optional<at::Tensor>& values, int64_t nnz,
                                                                 bool index64) {
  constexpr const char* kOp = "csr_from_mask";
  const int64_t rows = mask.dim() > 0 ? mask.size(0) : 0, cols = check_mask(mask, values);
  const at::Tensor dense = mask.contiguous(), source = values ? values->contiguous() : at::Tensor();
  const auto* bools = static_cast<const uint8_t*>(dense.const_data_ptr());
  at::Tensor crow = at::empty({rows + 1}, at::kLong);
  int64_t* pointers = crow.mutable_data_ptr<int64_t>();
  pointers[0] = 0;
  at::parallel_for(0, rows, grain(rows, mask.numel()), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) pointers[r + 1] = count_set(bools, r * cols, (r + 1) * cols);
  });
  std::partial_sum(pointers, pointers + rows + 1, pointers);
  const int64_t count = pointers[rows];
  TORCH_CHECK_VALUE(nnz < 0 || nnz == count, kOp, ": nnz: expected the number of entries that are on (", count, "), got ", nnz);
  check_mask_count(count, index64);
  at::Tensor col = at::empty({count}, at::kInt);
  at::Tensor val = values ? at::empty({count}, values->options()) : at::empty({0}, at::kFloat);
  for_width(kOp, "values", val, [&](auto element) {
    using T = decltype(element);
    const T* from = values ? static_cast<const T*>(source.const_data_ptr()) : nullptr;
    at::parallel_for(0, rows, grain(rows, mask.numel()), [&](int64_t begin, int64_t end) {
      rows_from_mask(bools, cols, pointers, col.mutable_data_ptr<int32_t>(), from, static_cast<T*>(val.mutable_data_ptr()), begin, end);
    });
  });
  return {index64 ? crow : crow.to(at::kInt), col, val};
}

// ---- validation ----

// The lowest entry at fault over all rows; `finite` looks at the value of a position.
template <class I, class Finite>
CsrFinding first_entry_fault(const at::Tensor& crow, const at::Tensor& col, int64_t rows, int64_t cols, const Finite& finite) {
  CsrFinding lowest;
  std::mutex mutex;
  at::parallel_for(0, rows, grain(rows, col.numel()), [&](int64_t begin, int64_t end) {
    const CsrFinding found = entry_fault(crow.const_data_ptr<I>(), col.const_data_ptr<int32_t>(), cols, begin, end, finite);
    std::lock_guard<std::mutex> lock(mutex);
    if (found.fault != CsrFault::none && (lowest.fault == CsrFault::none || found.position < lowest.position)) lowest = found;
  });
  return lowest;
}

template <class I>
CsrFinding first_fault(const at::Tensor& crow, const at::Tensor& col, int64_t rows, int64_t cols, const at::Tensor& val) {
  const CsrFinding pointers = pointer_fault(crow.const_data_ptr<I>(), crow.numel(), rows, col.numel());
  if (pointers.fault != CsrFault::none) return pointers;
  const auto with = [&](auto element) {
    const auto* values = static_cast<const decltype(element)*>(val.const_data_ptr());
    return first_entry_fault<I>(crow, col, rows, cols, [values](int64_t e) { return std::isfinite(static_cast<double>(values[e])); });
  };
  if (!val.defined()) return first_entry_fault<I>(crow, col, rows, cols, [](int64_t) { return true; });
  if (val.scalar_type() == at::kFloat) return with(float{});
  if (val.scalar_type() == at::kBFloat16) return with(c10::BFloat16{});
  if (val.scalar_type() == at::kHalf) return with(c10::Half{});
  return with(double{});
}

CsrFinding find_fault(const at::Tensor& crow, const at::Tensor& col, int64_t rows, int64_t cols, const std::optional<at::Tensor>& val) {
  if (cols < 0 || crow.dim() != 1 || col.dim() != 1 || crow.numel() - 1 != rows) return {CsrFault::pointer_count, -1, -1};
  if (val && val->sizes() != col.sizes()) return {CsrFault::value_count, -1, -1};
  const at::Tensor values = val ? val->contiguous() : at::Tensor();
  return crow.scalar_type() == at::kInt ? first_fault<int32_t>(crow.contiguous(), col.contiguous(), rows, cols, values)
                                        : first_fault<int64_t>(crow.contiguous(), col.contiguous(), rows, cols, values);
}

at::Tensor csr_validate_cpu(const at::Tensor& crow, const at::Tensor& col, int64_t rows, int64_t cols, const std::optional<at::Tensor>& val) {
  check_validate_types(crow, col, val);
  const CsrFinding found = find_fault(crow, col, rows, cols, val);
  at::Tensor out = at::empty({3}, at::kLong);
  int64_t* three = out.mutable_data_ptr<int64_t>();
  three[0] = static_cast<int64_t>(found.fault), three[1] = found.row, three[2] = found.position;
  return out;
}

// ---- drop and insert ----

void move(const MovedTensor& a, const int64_t* source, int64_t begin, int64_t count) {
  for_width("csr_replace", "vals", a.from, [&](auto element) {
    using T = decltype(element);
    take_from(source, count, static_cast<const T*>(a.from.const_data_ptr()),
              a.inserted.defined() ? static_cast<const T*>(a.inserted.const_data_ptr()) : nullptr, static_cast<T*>(a.to.mutable_data_ptr()) + begin);
  });
}

std::tuple<at::Tensor, at::Tensor, std::vector<at::Tensor>> csr_replace_cpu(const at::Tensor& crow, const at::Tensor& col, at::TensorList vals,
                                                                            const at::Tensor& drop, const at::Tensor& rows, const at::Tensor& cols,
                                                                            const at::Tensor& take, std::optional<at::TensorList> inserted,
                                                                            int64_t nnz) {
  constexpr const char* kOp = "csr_replace";
  const at::Tensor drop_c = checked_array("drop", drop, at::kBool, "nonzeros", col.numel());
  const at::Tensor rows_c = checked_array("rows", rows, at::kInt, "rows", rows.numel());
  const at::Tensor cols_c = checked_array("cols", cols, at::kInt, "rows", rows.numel());
  const at::Tensor take_c = checked_array("take", take, at::kBool, "rows", rows.numel());
  const CsrPattern w = checked_pattern(kOp, crow, col, std::max<int64_t>(0, crow.numel() - 1), int64_t{1} << 31);
  const CsrChange change{w.crow,
                         w.col,
                         static_cast<const uint8_t*>(drop_c.const_data_ptr()),
                         w.rows,
                         w.nnz,
                         rows_c.const_data_ptr<int32_t>(),
                         cols_c.const_data_ptr<int32_t>(),
                         static_cast<const uint8_t*>(take_c.const_data_ptr()),
                         rows.numel()};
  std::vector<CsrChange::Taken> taken;
  const int64_t outside = change.collect(taken);
  TORCH_CHECK_VALUE(outside < 0, kOp, ": rows: expected rows in [0, ", w.rows, "), got ", change.new_rows[std::max<int64_t>(outside, 0)], " at ",
                    outside);
  at::Tensor crow_new = at::empty({w.rows + 1}, at::kLong);
  int64_t* pointers = crow_new.mutable_data_ptr<int64_t>();
  pointers[0] = 0;
  const int64_t rows_each = grain(w.rows, w.nnz + static_cast<int64_t>(taken.size()));
  at::parallel_for(0, w.rows, rows_each, [&](int64_t begin, int64_t end) { change.count(taken, pointers, begin, end); });
  std::partial_sum(pointers, pointers + w.rows + 1, pointers);
  const int64_t after = pointers[w.rows], expected = nnz < 0 ? w.nnz : nnz, grown = static_cast<int64_t>(taken.size());
  TORCH_CHECK_VALUE(after == expected, kOp, ": nnz: expected ", expected, " nonzeros after the change, got ", after, " (", w.nnz, " - ",
                    w.nnz + grown - after, " dropped + ", grown, " taken)");
  at::Tensor col_new = at::empty({after}, at::kInt);
  const std::vector<MovedTensor> arrays = moved_tensors(vals, inserted, w.nnz, rows.numel(), after, at::kCPU);
  std::atomic<int64_t> twice{-1};
  at::parallel_for(0, w.rows, rows_each, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> source;
    for (int64_t from = begin, to; from < end; from = to) {  // rows of a few thousand nonzeros together, so that `source` stays in cache
      to = from + 1;
      while (to < end && pointers[to + 1] - pointers[from] <= 4096) ++to;
      const int64_t first = pointers[from], count = pointers[to] - first;
      source.resize(count);
      const int64_t found = change.merge(taken, col_new.mutable_data_ptr<int32_t>() + first, source.data(), from, to);
      int64_t none = -1;
      if (found >= 0 && !twice.compare_exchange_strong(none, found))
        while (none > found && !twice.compare_exchange_weak(none, found)) {
        }
      for (const MovedTensor& a : arrays) move(a, source.data(), first, count);
    }
  });
  const int64_t key = twice.load();
  TORCH_CHECK_VALUE(key < 0, kOp, ": rows, cols: expected distinct and inactive candidates, got row ", CsrChange::row_of(key), ", column ",
                    CsrChange::col_of(key), " twice");
  std::vector<at::Tensor> out;
  for (const MovedTensor& a : arrays) out.push_back(a.to);
  return {narrowed(crow_new, crow.scalar_type(), kOp), col_new, out};
}

}  // namespace

TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("csr_from_mask", &csr_from_mask_cpu);
  m.impl("csr_validate", &csr_validate_cpu);
  m.impl("csr_replace", &csr_replace_cpu);
}

}  // namespace sparsekern
