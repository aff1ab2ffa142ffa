// The pattern of a sparse matrix as the CSR kernels see it, checked so that no malformed one can make them read elsewhere.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

namespace sparsekern {

struct CsrPattern {
  at::Tensor crow_keep, col_keep;  // own what the pointers show
  const int64_t* crow = nullptr;   // [rows + 1]
  const int32_t* col = nullptr;    // [nnz]
  int64_t rows = 0, cols = 0, nnz = 0;
};

// Row pointers int32 or int64 that start at 0, never fall and end at the number of columns given; int32 columns inside
// [0, cols). Order and duplicates are csr_validate's business: no memory access rests on them. A pattern that passed is
// remembered with the versions of its tensors, so training checks a topology once. Changes that the version does not count
// (through `.data` or memory shared with others) go unseen: such a pattern is the caller's to check again.
// `crow_name` and `col_name` are the argument names for the message. Raises ValueError.
CsrPattern checked_pattern(const char* op, const at::Tensor& crow, const at::Tensor& col, int64_t rows, int64_t cols, const char* crow_name = "crow",
                           const char* col_name = "col");

// The same for `perm` of csr_plan: int32 [nnz], each inside [0, limit).
at::Tensor checked_positions(const char* op, const char* name, const at::Tensor& positions, int64_t count, int64_t limit);

}  // namespace sparsekern
