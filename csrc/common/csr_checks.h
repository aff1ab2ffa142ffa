// Checks of CSR operands for bindings that trust the pattern's content (reading it back would wait for the device): dtypes, shapes and
// devices, in the words of the CPU path.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>

namespace sparsekern {

inline void check_same_device(const char* op, const char* name, const at::Tensor& t, c10::Device device) {
  TORCH_CHECK_VALUE(t.device() == device, op, ": ", name, ": expected a tensor on ", device, ", got ", t.device(), "; move it with .to()");
}

// One dimension of int32, or of int64 where `wide_too`.
inline void check_index_vector(const char* op, const char* name, const at::Tensor& t, bool wide_too, c10::Device device) {
  check_same_device(op, name, t, device);
  TORCH_CHECK_TYPE(t.scalar_type() == at::kInt || (wide_too && t.scalar_type() == at::kLong), op, ": ", name, ": expected int32",
                   wide_too ? " or int64" : "", ", got ", t.scalar_type());
  TORCH_CHECK_VALUE(t.dim() == 1, op, ": ", name, ": expected one dimension, got shape ", t.sizes());
}

inline void check_pattern_shape(const char* op, const at::Tensor& crow, const at::Tensor& col, int64_t rows, int64_t cols, c10::Device device,
                                const char* crow_name = "crow", const char* col_name = "col") {
  TORCH_CHECK_VALUE(rows >= 0 && cols >= 0 && cols <= (int64_t{1} << 31), op, ": expected a shape with sides >= 0 and at most 2^31 columns, got ",
                    rows, " x ", cols);
  check_index_vector(op, crow_name, crow, true, device);
  check_index_vector(op, col_name, col, false, device);
  TORCH_CHECK_VALUE(crow.numel() - 1 == rows, op, ": ", crow_name, ": expected ", static_cast<uint64_t>(rows) + 1, " row pointers for ", rows,
                    " rows, got ", crow.numel());
}

// int32 [count], like `perm` of csr_plan.
inline void check_position_count(const char* op, const char* name, const at::Tensor& t, int64_t count, c10::Device device) {
  check_index_vector(op, name, t, false, device);
  TORCH_CHECK_VALUE(t.numel() == count, op, ": ", name, ": expected ", count, " positions, got ", t.numel());
}

// The dense operand, [height, N].
inline void check_dense_operand(const char* op, const char* name, const at::Tensor& b, int64_t height) {
  const auto type = b.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf || type == at::kDouble, op, ": ", name,
                   ": expected float32, bfloat16, float16 or float64, got ", type);
  TORCH_CHECK_VALUE(b.dim() == 2 && b.size(0) == height, op, ": ", name, ": expected shape [", height, ", N], got ", b.sizes());
}

// `count` numbers of b's type, or float32 beside a half type.
inline void check_values_beside(const char* op, const char* name, const at::Tensor& given, const at::Tensor& b, int64_t count) {
  const bool half = b.element_size() == 2;
  TORCH_CHECK_TYPE(given.scalar_type() == b.scalar_type() || (half && given.scalar_type() == at::kFloat), op, ": ", name, ": expected ",
                   b.scalar_type(), half ? " or Float" : "", " beside ", b.scalar_type(), ", got ", given.scalar_type());
  TORCH_CHECK_VALUE(given.dim() == 1 && given.numel() == count, op, ": ", name, ": expected shape [", count, "], got ", given.sizes());
  check_same_device(op, name, given, b.device());
}

}  // namespace sparsekern
