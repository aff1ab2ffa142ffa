// How many elements to take per segment: checks shared by the selection ops of the CPU and CUDA bindings.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "common/check.h"

namespace sparsekern {

inline void check_segments(const char* op, const char* name, size_t got, size_t entries, bool global) {
  const size_t expected = global ? 1 : entries;
  TORCH_CHECK_VALUE(got == expected, op, ": ", name, ": expected ", expected,
                    global ? " number for the whole list (global_=True)" : " numbers, one per list entry", ", got ", got);
}

inline void check_k(const char* op, const char* name, const at::Tensor& k) {
  TORCH_CHECK_TYPE(k.scalar_type() == at::kLong, op, ": ", name, ": expected int64, got ", k.scalar_type());
  TORCH_CHECK_VALUE(k.dim() <= 1, op, ": ", name, ": expected a vector or a 0-d tensor, got shape ", k.sizes());
}

// A tensor k on the CPU: one number per segment, or a 0-d tensor for all of them.
inline std::vector<int64_t> segment_k(const char* op, const char* name, const at::Tensor& k, size_t entries, bool global) {
  check_k(op, name, k);
  TORCH_CHECK_VALUE(k.device().is_cpu(), op, ": ", name, ": expected a tensor on cpu like the scores, got ", k.device(), "; move it with .to()");
  const at::Tensor flat = k.contiguous();
  const int64_t* at = flat.const_data_ptr<int64_t>();
  if (k.dim() == 0) return std::vector<int64_t>(global ? 1 : entries, at[0]);
  return std::vector<int64_t>(at, at + flat.numel());
}

}  // namespace sparsekern
