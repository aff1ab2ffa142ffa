// Checks, grouping by dtype and registration of masked_weight on CUDA; the gradient is in Python. Nothing here waits for the device.
#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "common/weight_lists.h"
#include "cuda/masked_weight.h"
#include "cuda/stream.h"

namespace sparsekern {
namespace {

// One launch per (device, dtypes) that occurs; usually that is one. grad_masks and dense_grad speak about the gradient only.
std::vector<at::Tensor> masked_weight_list_cuda(at::TensorList weights, at::TensorList masks, std::optional<at::TensorList> grad_masks,
                                                bool dense_grad, std::optional<at::ScalarType> dtype) {
  constexpr const char* op = kMaskedWeight;
  for (size_t i = 0; i < weights.size(); ++i) {
    cuda::check_cuda(op, "weights", i, weights[i]);
    cuda::dtype_of(op, "weights", weights[i].scalar_type());
  }
  if (dtype) cuda::dtype_of(op, "dtype", *dtype);
  WeightLists lists(weights, masks, dtype);
  std::vector<bool> done(lists.size(), false);
  std::vector<cuda::WeightEntry> entries;
  for (size_t i = 0; i < lists.size(); ++i) {
    if (done[i]) continue;
    const c10::Device device = weights[i].device();
    entries.clear();
    for (size_t k = i; k < lists.size(); ++k) {
      const WeightView& x = lists[k];
      if (done[k] || x.from_type != lists[i].from_type || x.to_type != lists[i].to_type || weights[k].device() != device) continue;
      done[k] = true;
      if (x.numel != 0) entries.push_back({x.from, x.to, x.mask.data, x.numel, 0, x.mask.kind});
    }
    if (entries.empty()) continue;
    const c10::DeviceGuard guard(device);
    SK_CUDA_CHECK(op, cuda::launch_masked_weight(entries.data(), entries.size(), cuda::dtype_of(op, "weights", lists[i].from_type),
                                                 cuda::dtype_of(op, "dtype", lists[i].to_type), cuda::device_props(op, device),
                                                 cuda::current_stream(op, device)));
  }
  return std::move(lists.out);
}

at::Tensor masked_weight_cuda(const at::Tensor& weight, const at::Tensor& mask, const std::optional<at::Tensor>& grad_mask, bool dense_grad,
                              std::optional<at::ScalarType> dtype) {
  return masked_weight_list_cuda(weight, mask, std::nullopt, dense_grad, dtype)[0];
}

}  // namespace

SK_CUDA_LIBRARY(m) {
  m.impl("masked_weight", &masked_weight_cuda);
  m.impl("masked_weight.list", &masked_weight_list_cuda);
}

}  // namespace sparsekern
