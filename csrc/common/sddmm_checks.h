// Checks of the sampled products' arguments, shared by the CPU and CUDA bindings.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace sparsekern {

inline void check_sddmm_operands(const char* op, const at::Tensor& a, const at::Tensor& b) {
  const at::ScalarType type = a.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf || type == at::kDouble, op,
                   ": a: expected float32, bfloat16, float16 or float64, got ", type);
  TORCH_CHECK_TYPE(b.scalar_type() == type, op, ": b: expected ", type, " like a, got ", b.scalar_type());
  TORCH_CHECK_VALUE(b.device() == a.device(), op, ": b: expected a tensor on ", a.device(), " like a, got ", b.device(), "; move it with .to()");
  TORCH_CHECK_VALUE(a.dim() == 2, op, ": a: expected two dimensions, got shape ", a.sizes());
  TORCH_CHECK_VALUE(b.dim() == 2, op, ": b: expected two dimensions, got shape ", b.sizes());
  TORCH_CHECK_VALUE(a.size(1) == b.size(1), op, ": b: expected ", a.size(1), " columns like a, got ", b.size(1));
}

// `rows` or `cols` of a list of places.
inline void check_places(const char* op, const char* name, const at::Tensor& places, int64_t samples) {
  TORCH_CHECK_TYPE(places.scalar_type() == at::kInt, op, ": ", name, ": expected int32, got ", places.scalar_type());
  TORCH_CHECK_VALUE(places.dim() == 1 && places.numel() == samples, op, ": ", name, ": expected shape [", samples, "] like the rows, got ",
                    places.sizes());
}

inline void check_count(const char* op, const at::Tensor& count) {
  TORCH_CHECK_TYPE(count.scalar_type() == at::kLong || count.scalar_type() == at::kInt, op, ": count: expected int32 or int64, got ",
                   count.scalar_type());
  TORCH_CHECK_VALUE(count.numel() == 1, op, ": count: expected one element, got shape ", count.sizes());
}

}  // namespace sparsekern
