// Checks shared by the CPU and CUDA bindings; each message names op, argument, what was expected and what came.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>

#include "common/mask_view.h"

namespace sparsekern {

inline void check_same_length(const char* op, const char* name, size_t got, size_t expected) {
  TORCH_CHECK_VALUE(got == expected, op, ": ", name, ": expected a list of ", expected, " tensors like the first list, got ", got);
}

inline bool same_layout(const at::Tensor& a, const at::Tensor& b) { return a.sizes() == b.sizes() && a.strides() == b.strides(); }

// A tensor that the op writes: it must own a dense block, since a copy would take the result away from the caller.
inline void check_mutable(const char* op, const char* name, size_t index, const at::Tensor& t) {
  TORCH_CHECK_VALUE(t.is_non_overlapping_and_dense(), op, ": ", name, "[", index, "]: expected a dense tensor (it is written in place), got sizes ",
                    t.sizes(), " with strides ", t.strides(), "; pass a contiguous tensor");
}

inline void check_like(const char* op, const char* name, size_t index, const at::Tensor& t, const at::Tensor& like) {
  TORCH_CHECK_VALUE(t.sizes() == like.sizes(), op, ": ", name, "[", index, "]: expected shape ", like.sizes(), ", got ", t.sizes());
  TORCH_CHECK_VALUE(t.device() == like.device(), op, ": ", name, "[", index, "]: expected a tensor on ", like.device(), ", got ", t.device(),
                    "; move it with .to()");
}

// `like` is the dense tensor whose elements the mask selects. A bool mask of another layout is copied into `keep`.
inline MaskView mask_view(const char* op, const char* name, size_t index, const at::Tensor& mask, const at::Tensor& like, at::Tensor& keep) {
  if (mask.numel() == 0 && (like.numel() != 0 || mask.dim() == 1)) return {};
  TORCH_CHECK_VALUE(mask.device() == like.device(), op, ": ", name, "[", index, "]: expected a mask on ", like.device(), ", got ", mask.device());
  if (mask.scalar_type() == at::kBool) {
    TORCH_CHECK_VALUE(mask.sizes() == like.sizes(), op, ": ", name, "[", index, "]: expected a bool mask of shape ", like.sizes(), ", got ",
                      mask.sizes());
    keep = mask;
    if (!same_layout(mask, like)) {
      keep = mask.new_empty_strided(like.sizes(), like.strides());
      keep.copy_(mask);
    }
    return {MaskKind::bools, keep.const_data_ptr()};
  }
  TORCH_CHECK_TYPE(mask.scalar_type() == at::kInt, op, ": ", name, "[", index, "]: expected a bool mask, packed int32 words or an empty tensor, got ",
                   mask.scalar_type());
  TORCH_CHECK_VALUE(mask.dim() == 1 && mask.numel() == packed_words(like.numel()) && mask.is_contiguous(), op, ": ", name, "[", index, "]: expected ",
                    packed_words(like.numel()), " contiguous int32 words for ", like.numel(), " elements, got shape ", mask.sizes());
  TORCH_CHECK_VALUE(like.is_contiguous(), op, ": ", name, "[", index, "]: a packed mask goes with a row-major tensor, got strides ", like.strides(),
                    "; pass the bool mask instead");
  return {MaskKind::bits, mask.const_data_ptr()};
}

}  // namespace sparsekern
