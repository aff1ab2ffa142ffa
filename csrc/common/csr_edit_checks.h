// Checks of the ops that make, change and sample sparse patterns, for the CPU and the CUDA bindings; each message names op, argument, what was
// expected and what came.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <optional>
#include <vector>

#include "common/csr_checks.h"

namespace sparsekern {

// Positions in a pattern and its rows are int32.
inline void check_plan_size(int64_t rows, int64_t nnz) {
  constexpr int64_t kMost = (int64_t{1} << 31) - 1;
  TORCH_CHECK_VALUE(rows <= kMost && nnz <= kMost, "csr_plan: expected at most 2^31 - 1 rows and nonzeros (positions are int32), got ", rows,
                    " rows and ", nnz, " nonzeros");
}

// Calls fn with an unsigned integer as wide as the elements: arrays only move.
template <class Fn>
void for_width(const char* op, const char* name, const at::Tensor& t, const Fn& fn) {
  switch (t.element_size()) {
    case 1:
      return fn(uint8_t{});
    case 2:
      return fn(uint16_t{});
    case 4:
      return fn(uint32_t{});
    case 8:
      return fn(uint64_t{});
    default:
      TORCH_CHECK_TYPE(false, op, ": ", name, ": expected elements of at most 8 bytes, got ", t.scalar_type());
  }
}

// ---- csr_from_mask, csr_validate ----

// Returns the number of columns.
inline int64_t check_mask(const at::Tensor& mask, const std::optional<at::Tensor>& values) {
  constexpr const char* kOp = "csr_from_mask";
  TORCH_CHECK_TYPE(mask.scalar_type() == at::kBool, kOp, ": mask: expected bool, got ", mask.scalar_type());
  TORCH_CHECK_VALUE(mask.dim() >= 2, kOp, ": mask: expected two dimensions or more, got shape ", mask.sizes());
  TORCH_CHECK_VALUE(!values || values->sizes() == mask.sizes(), kOp, ": values: expected the mask's shape ", mask.sizes(), ", got ",
                    values ? values->sizes() : at::IntArrayRef{});
  int64_t cols = 1;
  for (int64_t d = 1; d < mask.dim(); ++d) cols *= mask.size(d);
  TORCH_CHECK_VALUE(cols <= (int64_t{1} << 31), kOp, ": mask: expected at most 2^31 columns, got ", cols);
  if (values) for_width(kOp, "values", *values, [](auto) {});
  return cols;
}

inline void check_mask_count(int64_t count, bool index64) {
  TORCH_CHECK_VALUE(index64 || count < (int64_t{1} << 31), "csr_from_mask: ", count, " nonzeros need int64 row pointers; pass index64=True");
}

inline void check_validate_types(const at::Tensor& crow, const at::Tensor& col, const std::optional<at::Tensor>& val) {
  constexpr const char* kOp = "csr_validate";
  TORCH_CHECK_TYPE(crow.scalar_type() == at::kInt || crow.scalar_type() == at::kLong, kOp, ": crow: expected int32 or int64, got ",
                   crow.scalar_type());
  TORCH_CHECK_TYPE(col.scalar_type() == at::kInt, kOp, ": col: expected int32, got ", col.scalar_type());
  if (!val) return;
  const at::ScalarType type = val->scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf || type == at::kDouble, kOp,
                   ": val: expected float32, bfloat16, float16 or float64, got ", type);
}

// ---- csr_replace ----

inline at::Tensor checked_array(const char* name, const at::Tensor& t, at::ScalarType type, const char* like, int64_t length) {
  TORCH_CHECK_TYPE(t.scalar_type() == type, "csr_replace: ", name, ": expected ", type, ", got ", t.scalar_type());
  TORCH_CHECK_VALUE(t.dim() == 1 && t.numel() == length, "csr_replace: ", name, ": expected shape [", length, "] like the ", like, ", got ",
                    t.sizes());
  return t.contiguous();
}

struct MovedTensor {
  at::Tensor from, inserted, to;
};

inline std::vector<MovedTensor> moved_tensors(at::TensorList vals, const std::optional<at::TensorList>& inserted, int64_t nnz, int64_t candidates,
                                              int64_t after, c10::Device device) {
  TORCH_CHECK_VALUE(!inserted || inserted->size() == vals.size(), "csr_replace: inserted: expected a list of ", vals.size(),
                    " tensors like vals, got ", inserted ? inserted->size() : 0);
  std::vector<MovedTensor> arrays;
  for (size_t i = 0; i < vals.size(); ++i) {
    MovedTensor a;
    TORCH_CHECK_VALUE(vals[i].dim() == 1 && vals[i].numel() == nnz, "csr_replace: vals[", i, "]: expected shape [", nnz, "] like the nonzeros, got ",
                      vals[i].sizes());
    check_same_device("csr_replace", ("vals[" + std::to_string(i) + "]").c_str(), vals[i], device);
    a.from = vals[i].contiguous();
    if (inserted) {
      const at::Tensor& grown = (*inserted)[i];
      TORCH_CHECK_VALUE(grown.dim() == 1 && grown.numel() == candidates, "csr_replace: inserted[", i, "]: expected shape [", candidates,
                        "] like the rows, got ", grown.sizes());
      TORCH_CHECK_TYPE(grown.scalar_type() == vals[i].scalar_type(), "csr_replace: inserted[", i, "]: expected ", vals[i].scalar_type(),
                       " like vals[", i, "], got ", grown.scalar_type());
      check_same_device("csr_replace", ("inserted[" + std::to_string(i) + "]").c_str(), grown, device);
      a.inserted = grown.contiguous();
    }
    for_width("csr_replace", "vals", a.from, [](auto) {});
    a.to = at::empty({after}, vals[i].options());
    arrays.push_back(std::move(a));
  }
  return arrays;
}

// ---- csr_setdiff, sample_product, gse_candidates ----

inline void check_places(const char* name, const at::Tensor& t, int64_t length) {
  constexpr const char* kOp = "csr_setdiff";
  TORCH_CHECK_TYPE(t.scalar_type() == at::kInt, kOp, ": ", name, ": expected int32, got ", t.scalar_type());
  TORCH_CHECK_VALUE(t.dim() == 1 && t.numel() == length, kOp, ": ", name, ": expected one dimension and the length of rows, got shape ", t.sizes());
  TORCH_CHECK_VALUE(length < int64_t{1} << 31, kOp, ": ", name, ": expected fewer than 2^31 positions, got ", length);
}

constexpr int64_t kMostItems = 1 << 24;  // to draw from: above, the total of a table could pass 2^62

inline void check_weights(const char* op, const char* name, const at::Tensor& weights, c10::Device device) {
  TORCH_CHECK_TYPE(weights.scalar_type() == at::kFloat, op, ": ", name, ": expected float32, got ", weights.scalar_type(),
                   "; convert it with .float()");
  TORCH_CHECK_VALUE(weights.dim() == 1 && weights.numel() <= kMostItems, op, ": ", name,
                    ": expected one dimension and at most 2^24 weights, got shape ", weights.sizes());
  check_same_device(op, name, weights, device);
}

inline void check_sampling(const char* op, const at::Tensor& row_weights, const at::Tensor& col_weights, int64_t num_samples, const at::Tensor& seed,
                           c10::Device device) {
  check_weights(op, "row_weights", row_weights, device);
  check_weights(op, "col_weights", col_weights, device);
  TORCH_CHECK_TYPE(seed.scalar_type() == at::kLong, op, ": seed: expected int64, got ", seed.scalar_type());
  TORCH_CHECK_VALUE(seed.numel() == 1, op, ": seed: expected one number, got shape ", seed.sizes());
  check_same_device(op, "seed", seed, device);
  TORCH_CHECK_VALUE(num_samples >= 0, op, ": num_samples: expected a number >= 0, got ", num_samples);
  TORCH_CHECK_VALUE(num_samples < int64_t{1} << 31, op, ": num_samples: expected fewer than 2^31, got ", num_samples);
}

inline void check_some_weights(const char* op, const char* name, const at::Tensor& weights) {
  TORCH_CHECK_VALUE(weights.numel() > 0, op, ": ", name, ": expected at least one weight to draw from, got none");
}

inline void check_rounds(int64_t rounds) { TORCH_CHECK_VALUE(rounds >= 1, "gse_candidates: rounds: expected a number >= 1, got ", rounds); }

}  // namespace sparsekern
