// Checks and registration of is_clean on CUDA. Nothing here waits for the device.
#include <ATen/core/Tensor.h>
#include <ATen/ops/ones.h>

#include <vector>

#include "common/sgd_lists.h"
#include "cuda/is_clean.h"
#include "cuda/stream.h"

namespace sparsekern {
namespace {

at::Tensor is_clean_cuda(at::TensorList params, at::TensorList momentum_buffers, at::TensorList masks) {
  constexpr const char* op = "is_clean";
  for (size_t i = 0; i < params.size(); ++i) {
    cuda::check_cuda(op, "params", i, params[i]);
    cuda::dtype_of(op, "params", params[i].scalar_type());
    TORCH_CHECK_VALUE(params[i].device() == params[0].device(), op, ": params[", i, "]: expected a tensor on ", params[0].device(),
                      " like params[0], got ", params[i].device(), "; move it with .to()");
  }
  const SgdLists lists(op, params, params, momentum_buffers, masks, momentum_buffers.empty() ? 0 : 1, "params");
  const c10::Device device = params.empty() ? c10::Device(c10::kCPU) : params[0].device();
  const c10::DeviceGuard guard(device);
  at::Tensor clean = at::ones({}, at::TensorOptions().dtype(at::kBool).device(device));
  for (const int bytes : {4, 2}) {
    std::vector<cuda::CleanEntry> entries;
    for (size_t i = 0; i < lists.size(); ++i)
      for (const void* data : {static_cast<const void*>(lists[i].param), static_cast<const void*>(lists[i].momentum)})
        if (data && params[i].numel() != 0 && static_cast<int>(params[i].element_size()) == bytes)
          entries.push_back({data, lists[i].mask.data, params[i].numel(), 0, lists[i].mask.kind});
    if (!entries.empty())
      SK_CUDA_CHECK(op, cuda::launch_is_clean(entries.data(), entries.size(), bytes, clean.mutable_data_ptr<bool>(), cuda::device_props(op, device),
                                              cuda::current_stream(op, device)));
  }
  return clean;
}

}  // namespace

SK_CUDA_LIBRARY(m) { m.impl("is_clean", &is_clean_cuda); }

}  // namespace sparsekern
