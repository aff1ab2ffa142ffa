// The tensor lists of channel_scores, checked once and turned into raw pointers, with their outputs; for the CPU and the CUDA bindings.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>
#include <vector>

#include "common/check.h"
#include "common/float_types.h"

namespace sparsekern {

constexpr const char* kChannelScores = "channel_scores";

struct ScoreView {
  const void* weight = nullptr;  // rows of row_size elements, one after the other
  void* out = nullptr;           // [rows] fp32, fp64 for fp64
  int64_t rows = 0, row_size = 0;
  MaskView a, b;
  at::ScalarType type;
};

class ScoreLists {
 public:
  std::vector<at::Tensor> out;
  const bool has_b;

  ScoreLists(at::TensorList weights, at::TensorList masks_a, const std::optional<at::TensorList>& masks_b)
      : has_b(masks_b.has_value()), views_(weights.size()) {
    check_same_length(kChannelScores, "masks_a", masks_a.size(), weights.size());
    if (has_b) check_same_length(kChannelScores, "masks_b", masks_b->size(), weights.size());
    for (size_t i = 0; i < weights.size(); ++i) {
      ScoreView& view = views_[i];
      const at::Tensor& w = weights[i];
      TORCH_CHECK_VALUE(w.dim() > 0, kChannelScores, ": weights[", i, "]: expected [channels, ...], got a scalar");
      view.type = w.scalar_type();
      for_float(kChannelScores, "weights", view.type, [](auto) {});
      view.rows = w.size(0);
      view.row_size = view.rows ? w.numel() / view.rows : 0;
      const at::Tensor source = by_rows(w, view.row_size) || is_packed(masks_a[i]) || (has_b && is_packed((*masks_b)[i])) ? w : w.contiguous();
      kept_.push_back(source);
      view.a = mask_of("masks_a", i, masks_a[i], source);
      if (has_b) view.b = mask_of("masks_b", i, (*masks_b)[i], source);
      view.weight = source.const_data_ptr();
      out.push_back(at::empty({view.rows}, w.options().dtype(view.type == at::kDouble ? at::kDouble : at::kFloat)));
      view.out = out.back().mutable_data_ptr();
    }
  }
  const ScoreView& operator[](size_t i) const { return views_[i]; }
  size_t size() const { return views_.size(); }

 private:
  // Whether each channel is a block of its own; the order inside does not matter.
  static bool by_rows(const at::Tensor& w, int64_t row_size) {
    return w.is_non_overlapping_and_dense() && (w.size(0) <= 1 || w.stride(0) == row_size);
  }
  // Goes with row-major weights only; mask_view says so.
  static bool is_packed(const at::Tensor& mask) { return mask.numel() != 0 && mask.scalar_type() == at::kInt; }

  MaskView mask_of(const char* name, size_t i, const at::Tensor& mask, const at::Tensor& like) {
    at::Tensor copy;
    const MaskView view = mask_view(kChannelScores, name, i, mask, like, copy);
    if (copy.defined()) kept_.push_back(std::move(copy));
    return view;
  }

  std::vector<ScoreView> views_;
  std::vector<at::Tensor> kept_;  // copies of masks and weights that lay otherwise
};

}  // namespace sparsekern
