// Checks of the N:M ops, shared by the CPU and CUDA bindings.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>

namespace sparsekern {

constexpr int64_t kLargestGroup = 64;

inline void check_float(const char* op, const char* name, at::ScalarType type) {
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf || type == at::kDouble, op, ": ", name,
                   ": expected float32, bfloat16, float16 or float64, got ", type);
}

// n of m, 0 <= n <= m <= 64.
inline void check_ratio(const char* op, int64_t n, int64_t m) {
  TORCH_CHECK_VALUE(m >= 1 && m <= kLargestGroup, op, ": m: expected a group of 1 to ", kLargestGroup, " elements, got ", m);
  TORCH_CHECK_VALUE(n >= 0 && n <= m, op, ": n: expected 0 to m = ", m, " elements kept of each group, got ", n,
                    n > m ? "; n is the number kept, not the number of zeros" : "");
}

// The dimension of x that the groups lie along, counted from the front.
inline int64_t check_nm(const char* op, const at::Tensor& x, int64_t n, int64_t m, int64_t dim) {
  check_float(op, "x", x.scalar_type());
  check_ratio(op, n, m);
  const int64_t dims = x.dim() == 0 ? 1 : x.dim();
  TORCH_CHECK_VALUE(dim >= -dims && dim < dims, op, ": dim: expected a dimension from ", -dims, " to ", dims - 1, ", got ", dim);
  return dim < 0 ? dim + dims : dim;
}

// What nm_apply_ writes in place.
inline void check_nm_dense(const char* op, const at::Tensor& x) {
  TORCH_CHECK_VALUE(x.is_non_overlapping_and_dense(), op, ": x: expected a dense tensor (it is written in place), got sizes ", x.sizes(),
                    " with strides ", x.strides(), "; pass a contiguous tensor");
}

inline void check_transposable(const at::Tensor& x, int64_t n, int64_t m) {
  constexpr const char* kOp = "nm_mask_transposable";
  check_float(kOp, "x", x.scalar_type());
  TORCH_CHECK_VALUE(n == 2 && m == 4, kOp, ": n, m: expected 2 of 4, the only transposable pattern there is a kernel for, got ", n, " of ", m);
  TORCH_CHECK_VALUE(x.dim() == 2 && x.size(0) % 4 == 0 && x.size(1) % 4 == 0, kOp, ": x: expected a matrix with sides divisible by 4, got shape ",
                    x.sizes());
}

inline void check_band(const char* op, int64_t v) { TORCH_CHECK_VALUE(v >= 1, op, ": v: expected at least 1 row that shares its columns, got ", v); }

inline void check_nm_pack(const at::Tensor& x, int64_t n, int64_t m, int64_t v) {
  constexpr const char* kOp = "nm_pack";
  check_float(kOp, "x", x.scalar_type());
  check_ratio(kOp, n, m);
  check_band(kOp, v);
  TORCH_CHECK_VALUE(x.dim() == 2 && x.size(1) % m == 0, kOp, ": x: expected a matrix with columns divisible by m = ", m, ", got shape ", x.sizes());
  TORCH_CHECK_VALUE(x.size(0) % v == 0, kOp, ": x: expected rows divisible by v = ", v, ", got shape ", x.sizes());
}

// What nm_pack made of a matrix with `cols` columns; b and the dtypes are left to the caller.
inline void check_nm_packed(const at::Tensor& values, const at::Tensor& index, int64_t n, int64_t m, int64_t cols, int64_t v) {
  constexpr const char* kOp = "nm_spmm";
  check_ratio(kOp, n, m);
  check_band(kOp, v);
  TORCH_CHECK_VALUE(cols >= 0 && cols % m == 0, kOp, ": cols: expected a multiple of m = ", m, ", got ", cols);
  TORCH_CHECK_VALUE(values.dim() == 2 && values.size(1) == cols / m * n, kOp, ": values: expected shape [rows, ", cols / m * n, "], got ",
                    values.sizes());
  TORCH_CHECK_VALUE(values.size(0) % v == 0, kOp, ": values: expected rows divisible by v = ", v, ", got shape ", values.sizes());
  TORCH_CHECK_TYPE(index.scalar_type() == at::kByte, kOp, ": index: expected uint8, got ", index.scalar_type());
  TORCH_CHECK_VALUE(index.dim() == 2 && index.size(0) == values.size(0) / v && index.size(1) == values.size(1), kOp, ": index: expected shape [",
                    values.size(0) / v, ", ", values.size(1), "], got ", index.sizes());
}

}  // namespace sparsekern
