// From a tensor's dtype to a C++ type.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace sparsekern {

// Calls fn(T{}) for a supported type.
template <class Fn>
void for_float(const char* op, const char* name, at::ScalarType type, const Fn& fn) {
  using at::ScalarType;
  if (type == ScalarType::Float) return fn(float{});
  if (type == ScalarType::BFloat16) return fn(c10::BFloat16{});
  if (type == ScalarType::Half) return fn(c10::Half{});
  if (type == ScalarType::Double) return fn(double{});
  TORCH_CHECK_TYPE(false, op, ": ", name, ": expected float32, bfloat16, float16 or float64, got ", type);
}

}  // namespace sparsekern
