// Pieces and registration of masked_weight; the kernel is in masked_weight.h, the gradient in Python.
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <optional>
#include <vector>

#include "common/weight_lists.h"
#include "cpu/pieces.h"

#define SK_KERNEL_FILE "cpu/masked_weight.h"
#include "cpu/for_each_isa.h"

namespace sparsekern {
namespace {

// grad_mask and dense_grad speak about the gradient only; Python's backward reads them.
std::vector<at::Tensor> masked_weight_list_cpu(at::TensorList weights, at::TensorList masks, std::optional<at::TensorList> grad_masks,
                                               bool dense_grad, std::optional<at::ScalarType> dtype) {
  WeightLists lists(weights, masks, dtype);
  std::vector<int64_t> numel;
  for (size_t i = 0; i < lists.size(); ++i) numel.push_back(lists[i].numel);
  Pieces(std::move(numel)).each([&](int64_t, int64_t t, int64_t begin, int64_t end) {
    const WeightView& e = lists[t];
    for_float(kMaskedWeight, "weights", e.from_type, [&](auto from) {
      for_float(kMaskedWeight, "dtype", e.to_type, [&](auto to) {
        using T = decltype(from);
        using O = decltype(to);
        SK_PICK(masked_weight_piece<T, O>)(static_cast<const T*>(e.from), static_cast<O*>(e.to), e.mask, begin, end);
      });
    });
  });
  return std::move(lists.out);
}

at::Tensor masked_weight_cpu(const at::Tensor& weight, const at::Tensor& mask, const std::optional<at::Tensor>& grad_mask, bool dense_grad,
                             std::optional<at::ScalarType> dtype) {
  return masked_weight_list_cpu(weight, mask, std::nullopt, dense_grad, dtype)[0];
}

}  // namespace

TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("masked_weight", &masked_weight_cpu);
  m.impl("masked_weight.list", &masked_weight_list_cpu);
}

}  // namespace sparsekern
