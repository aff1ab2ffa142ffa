// What the CPU and CUDA bindings of prune_regrow_ check and copy alike.
#pragma once
#include <ATen/core/Tensor.h>

#include "common/check.h"

namespace sparsekern {

// A tensor of the caller and the row-major tensor that stands for it, written back where they differ.
struct Written {
  at::Tensor original, rows;
  explicit Written(const at::Tensor& t) : original(t), rows(t.contiguous()) {}
  void write_back() const {
    if (!rows.is_same(original)) original.copy_(rows);
  }
};

inline bool zeroes(const char* op, const char* name, c10::string_view what) {
  TORCH_CHECK_VALUE(what == "keep" || what == "zero", op, ": ", name, ": expected \"keep\" or \"zero\", got \"", what, "\"");
  return what == "zero";
}

// The mask of entry i in row-major order: it is written, so it must be there and must be dense.
inline MaskView written_mask(const char* op, size_t i, const Written& mask, const at::Tensor& weight) {
  const at::Tensor& m = mask.original;
  TORCH_CHECK_VALUE(m.numel() != 0 || weight.numel() == 0, op, ": masks[", i,
                    "]: expected a mask to write, got an empty tensor; start from torch.ones");
  if (m.scalar_type() == at::kBool) {
    check_mutable(op, "masks", i, m);
    check_like(op, "masks", i, m, weight);
    return {MaskKind::bools, mask.rows.mutable_data_ptr()};
  }
  at::Tensor unused;
  mask_view(op, "masks", i, m, weight, unused);
  return {MaskKind::bits, m.mutable_data_ptr()};
}

}  // namespace sparsekern
