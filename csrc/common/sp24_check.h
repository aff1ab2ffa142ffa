// Checks of sp24_compress and sp24_decompress, shared by the CPU and CUDA bindings.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/string_view.h>

#include <optional>

#include "common/check.h"
#include "common/nm_check.h"
#include "common/sp24_layout.h"

namespace sparsekern {

inline bool check_sp24_layout(const char* op, c10::string_view layout) {
  TORCH_CHECK_VALUE(layout == "sm80" || layout == "linear", op, ": layout: expected \"sm80\" or \"linear\", got \"", layout, "\"");
  return layout == "sm80";
}

// Whether the order of e is sm80.
inline bool check_sp24_compress(const at::Tensor& x, bool both, c10::string_view layout) {
  constexpr const char* kOp = "sp24_compress";
  check_float(kOp, "x", x.scalar_type());
  const bool sm80 = check_sp24_layout(kOp, layout);
  const int64_t rows = both ? kSp24Cols : kSp24Rows;
  TORCH_CHECK_VALUE(x.dim() == 2 && x.size(0) % rows == 0 && x.size(1) % kSp24Cols == 0, kOp, ": x: expected a matrix with rows divisible by ", rows,
                    " and columns by ", kSp24Cols, " (fill it up with zeros), got shape ", x.sizes());
  return sm80;
}

// The mask in row-major order; what it points to lives in `keep`. Packed words go with a row-major x.
inline MaskView sp24_mask(const std::optional<at::Tensor>& mask, const at::Tensor& x, at::Tensor& keep) {
  constexpr const char* kOp = "sp24_compress";
  if (!mask || !mask->defined() || (mask->numel() == 0 && (x.numel() != 0 || mask->dim() == 1))) return {};
  TORCH_CHECK_VALUE(mask->device() == x.device(), kOp, ": mask: expected a mask on ", x.device(), ", got ", mask->device());
  if (mask->scalar_type() == at::kBool) {
    TORCH_CHECK_VALUE(mask->sizes() == x.sizes(), kOp, ": mask: expected a bool mask of shape ", x.sizes(), ", got ", mask->sizes());
    keep = mask->contiguous();
    return {MaskKind::bools, keep.const_data_ptr()};
  }
  TORCH_CHECK_TYPE(mask->scalar_type() == at::kInt, kOp, ": mask: expected a bool mask, packed int32 words or an empty tensor, got ",
                   mask->scalar_type());
  TORCH_CHECK_VALUE(mask->dim() == 1 && mask->numel() == packed_words(x.numel()) && mask->is_contiguous(), kOp, ": mask: expected ",
                    packed_words(x.numel()), " contiguous int32 words for ", x.numel(), " elements, got shape ", mask->sizes());
  TORCH_CHECK_VALUE(x.is_contiguous(), kOp, ": mask: a packed mask goes with a row-major tensor, got strides ", x.strides(),
                    "; pass the bool mask instead");
  keep = *mask;
  return {MaskKind::bits, keep.const_data_ptr()};
}

inline bool check_sp24_decompress(const at::Tensor& v, const at::Tensor& e, at::IntArrayRef shape, c10::string_view layout) {
  constexpr const char* kOp = "sp24_decompress";
  check_float(kOp, "v", v.scalar_type());
  TORCH_CHECK_TYPE(e.scalar_type() == at::kShort, kOp, ": e: expected int16, got ", e.scalar_type());
  const bool sm80 = check_sp24_layout(kOp, layout);
  TORCH_CHECK_VALUE(v.dim() == 2 && v.size(0) % kSp24Rows == 0 && v.size(1) % (kSp24Cols / 2) == 0, kOp,
                    ": v: expected a matrix with rows and columns divisible by 32, got shape ", v.sizes());
  TORCH_CHECK_VALUE(e.dim() == 2 && e.size(0) == v.size(0) && e.size(1) == v.size(1) / 8, kOp, ": e: expected shape [", v.size(0), ", ",
                    v.size(1) / 8, "], got ", e.sizes());
  TORCH_CHECK_VALUE(e.device() == v.device(), kOp, ": e: expected a tensor on ", v.device(), ", got ", e.device(), "; move it with .to()");
  TORCH_CHECK_VALUE(shape.size() == 2 && shape[0] == v.size(0) && shape[1] == 2 * v.size(1), kOp, ": shape: expected [", v.size(0), ", ",
                    2 * v.size(1), "], got ", shape);
  return sm80;
}

}  // namespace sparsekern
