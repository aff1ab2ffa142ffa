// The weights of masked_weight, checked once and turned into raw pointers, with their outputs; for the CPU and the CUDA bindings.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>

#include <optional>
#include <vector>

#include "common/check.h"
#include "common/float_types.h"

namespace sparsekern {

constexpr const char* kMaskedWeight = "masked_weight";

struct WeightView {
  const void* from = nullptr;
  void* to = nullptr;
  int64_t numel = 0;
  MaskView mask;
  at::ScalarType from_type, to_type;
};

class WeightLists {
 public:
  std::vector<at::Tensor> out;

  WeightLists(at::TensorList weights, at::TensorList masks, std::optional<at::ScalarType> dtype) : views_(weights.size()) {
    check_same_length(kMaskedWeight, "masks", masks.size(), weights.size());
    out.reserve(weights.size());
    for (size_t i = 0; i < weights.size(); ++i) out.push_back(prepare(i, weights[i], masks[i], dtype, views_[i]));
  }
  const WeightView& operator[](size_t i) const { return views_[i]; }
  size_t size() const { return views_.size(); }

 private:
  at::Tensor prepare(size_t i, const at::Tensor& weight, const at::Tensor& mask, std::optional<at::ScalarType> dtype, WeightView& view) {
    view.from_type = weight.scalar_type();
    view.to_type = dtype.value_or(view.from_type);
    for_float(kMaskedWeight, "weights", view.from_type, [](auto) {});
    for_float(kMaskedWeight, "dtype", view.to_type, [](auto) {});
    at::Tensor to = at::empty_like(weight, weight.options().dtype(view.to_type));
    at::Tensor source = weight;
    const bool packed = mask.numel() != 0 && mask.scalar_type() == at::kInt;  // goes with row-major weights only; mask_view says so
    if (!packed && !same_layout(weight, to)) {
      source = weight.new_empty_strided(to.sizes(), to.strides());
      source.copy_(weight);
      kept_.push_back(source);
    }
    at::Tensor mask_copy;
    view.mask = mask_view(kMaskedWeight, "masks", i, mask, source, mask_copy);
    if (mask_copy.defined()) kept_.push_back(std::move(mask_copy));
    view.from = source.const_data_ptr();
    view.to = to.mutable_data_ptr();
    view.numel = weight.numel();
    return to;
  }

  std::vector<WeightView> views_;
  std::vector<at::Tensor> kept_;  // copies of masks and weights that lay otherwise
};

}  // namespace sparsekern
