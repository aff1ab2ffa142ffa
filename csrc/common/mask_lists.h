// The arguments of pack_mask, unpack_mask and mask_stats, checked once; for the CPU and the CUDA bindings.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "common/check.h"

namespace sparsekern {

inline void check_pack(const at::Tensor& mask) {
  TORCH_CHECK_TYPE(mask.scalar_type() == at::kBool, "pack_mask: mask: expected bool, got ", mask.scalar_type(), "; compare first, e.g. mask != 0");
}

// The number of elements of `shape`, whose bits these are.
inline int64_t check_unpack(const at::Tensor& bits, at::IntArrayRef shape) {
  TORCH_CHECK_TYPE(bits.scalar_type() == at::kInt, "unpack_mask: bits: expected int32 words, got ", bits.scalar_type());
  int64_t numel = 1;
  for (int64_t size : shape) {
    TORCH_CHECK_VALUE(size >= 0, "unpack_mask: shape: expected sizes >= 0, got ", shape);
    numel *= size;
  }
  TORCH_CHECK_VALUE(bits.dim() == 1 && bits.numel() == packed_words(numel), "unpack_mask: bits: expected [", packed_words(numel),
                    "] words for shape ", shape, " (", numel, " elements), got ", bits.sizes());
  return numel;
}

struct StatsView {
  const void *a = nullptr, *b = nullptr;  // contiguous bytes or words; b is null without a second list
  int64_t numel = 0;                      // of bytes or words
  bool packed = false;
};

class StatsLists {
 public:
  StatsLists(at::TensorList a, const std::optional<at::TensorList>& second) : views_(a.size()) {
    const at::TensorList b = second.value_or(at::TensorList());
    if (second) check_same_length("mask_stats", "b", b.size(), a.size());
    for (size_t i = 0; i < a.size(); ++i) {
      StatsView& view = views_[i];
      view.packed = a[i].scalar_type() == at::kInt;
      view.a = countable("a", i, a[i]);
      view.numel = a[i].numel();
      if (!second) continue;
      view.b = countable("b", i, b[i]);
      TORCH_CHECK_TYPE(a[i].scalar_type() == b[i].scalar_type(), "mask_stats: b[", i, "]: expected ", a[i].scalar_type(), " like a[", i, "], got ",
                       b[i].scalar_type(), "; pack or unpack one of them");
      check_like("mask_stats", "b", i, b[i], a[i]);
    }
  }
  const StatsView& operator[](size_t i) const { return views_[i]; }
  size_t size() const { return views_.size(); }

 private:
  const void* countable(const char* name, size_t i, const at::Tensor& mask) {
    TORCH_CHECK_TYPE(mask.scalar_type() == at::kInt || mask.scalar_type() == at::kBool, "mask_stats: ", name, "[", i,
                     "]: expected a bool mask or packed int32 words, got ", mask.scalar_type());
    kept_.push_back(mask.contiguous());
    return kept_.back().const_data_ptr();
  }
  std::vector<StatsView> views_;
  std::vector<at::Tensor> kept_;
};

}  // namespace sparsekern
