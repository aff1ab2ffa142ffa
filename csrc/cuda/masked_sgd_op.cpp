// Checks, grouping by dtype and registration of masked_sgd_ and packed_sgd_ on CUDA. Nothing here waits for the device.
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <optional>

#include "common/sgd_lists.h"
#include "cuda/masked_sgd.h"
#include "cuda/stream.h"

namespace sparsekern {
namespace {

using cuda::SgdEntry;
using cuda::SgdKind;

SgdEntry entry_of(const SgdTensor& x, int64_t numel) {
  const SgdKind kind = x.mask.kind == MaskKind::bools ? SgdKind::bools : x.mask.kind == MaskKind::bits ? SgdKind::bits : SgdKind::none;
  return {x.param, x.grad, x.momentum, x.mask.data, numel, 0, kind};
}

SgdEntry entry_of(const PackedTensor& x, int64_t numel) {
  const SgdKind kind = x.index == nullptr ? SgdKind::none : x.wide ? SgdKind::gather64 : SgdKind::gather32;
  return {x.param, x.grad, x.momentum, x.index, numel, 0, kind};
}

// The scalars of a call that live in tensors.
struct DeviceScalars {
  std::optional<at::Tensor> lr, grad_scale, found_inf;
};

// One launch per (device, dtypes) that occurs; usually that is one.
template <class Lists, class Launch>
void launch_groups(const char* op, const Lists& lists, at::TensorList params, const SgdScalars<float>& scalars, bool assume_clean,
                   const DeviceScalars& given, const Launch& launch) {
  std::vector<bool> done(lists.size(), false);
  const std::vector<int64_t> numel = lists.numel();
  std::vector<SgdEntry> entries;
  for (size_t i = 0; i < lists.size(); ++i) {
    if (done[i]) continue;
    const c10::Device device = params[i].device();
    entries.clear();
    for (size_t k = i; k < lists.size(); ++k) {
      if (done[k] || lists[k].param_type != lists[i].param_type || lists[k].grad_type != lists[i].grad_type || params[k].device() != device) continue;
      done[k] = true;
      if (numel[k] != 0) entries.push_back(entry_of(lists[k], numel[k]));
    }
    const cuda::SgdOptions options = {scalars, assume_clean, cuda::device_scalar(op, "lr", given.lr, device),
                                      cuda::device_scalar(op, "grad_scale", given.grad_scale, device),
                                      cuda::device_scalar(op, "found_inf", given.found_inf, device)};
    const cuda::DType param = cuda::dtype_of(op, "params", lists[i].param_type), grad = cuda::dtype_of(op, "grads", lists[i].grad_type);
    if (entries.empty()) continue;
    const c10::DeviceGuard guard(device);
    SK_CUDA_CHECK(op, launch(entries.data(), entries.size(), param, grad, options, cuda::device_props(op, device), cuda::current_stream(op, device)));
  }
}

void masked_sgd(at::TensorList params, at::TensorList grads, at::TensorList momentum_buffers, at::TensorList masks, double weight_decay,
                double momentum, double lr, double dampening, bool nesterov, bool maximize, bool is_first_step, c10::string_view outside, bool invert,
                bool assume_clean, const DeviceScalars& given) {
  constexpr const char* op = "masked_sgd_";
  for (size_t i = 0; i < params.size(); ++i) cuda::check_cuda(op, "params", i, params[i]);
  const bool zero_outside = outside_is_zero(op, outside);
  const SgdLists lists(op, params, grads, momentum_buffers, masks, momentum);
  const SgdScalars<float> scalars(weight_decay, momentum, lr, dampening, nesterov, maximize, is_first_step, zero_outside, invert);
  launch_groups(op, lists, params, scalars, assume_clean && zero_outside, given, cuda::launch_masked_sgd);
}

void masked_sgd_cuda(at::TensorList params, at::TensorList grads, at::TensorList momentum_buffers, at::TensorList masks, double weight_decay,
                     double momentum, double lr, double dampening, bool nesterov, bool maximize, bool is_first_step, c10::string_view outside,
                     bool invert, bool assume_clean, const std::optional<at::Tensor>& grad_scale, const std::optional<at::Tensor>& found_inf) {
  masked_sgd(params, grads, momentum_buffers, masks, weight_decay, momentum, lr, dampening, nesterov, maximize, is_first_step, outside, invert,
             assume_clean, {std::nullopt, grad_scale, found_inf});
}

// A learning rate on the CPU is read at once; one on the device never is, so that a captured graph follows a schedule.
void masked_sgd_tensor_lr_cuda(at::TensorList params, at::TensorList grads, at::TensorList momentum_buffers, at::TensorList masks,
                               double weight_decay, double momentum, const at::Tensor& lr, double dampening, bool nesterov, bool maximize,
                               bool is_first_step, c10::string_view outside, bool invert, bool assume_clean,
                               const std::optional<at::Tensor>& grad_scale, const std::optional<at::Tensor>& found_inf) {
  const bool on_host = !cuda::is_device(lr);
  masked_sgd(params, grads, momentum_buffers, masks, weight_decay, momentum, on_host ? lr.item().toDouble() : 0, dampening, nesterov, maximize,
             is_first_step, outside, invert, assume_clean,
             {on_host ? std::nullopt : std::optional<at::Tensor>(lr.to(at::kFloat)), grad_scale, found_inf});
}

void packed_sgd_cuda(at::TensorList values, at::TensorList grads, at::TensorList momentum_buffers,
                     const c10::List<std::optional<at::Tensor>>& indices, double weight_decay, double momentum, double lr, double dampening,
                     bool nesterov, bool maximize, bool is_first_step, const std::optional<at::Tensor>& grad_scale,
                     const std::optional<at::Tensor>& found_inf) {
  constexpr const char* op = "packed_sgd_";
  for (size_t i = 0; i < values.size(); ++i) cuda::check_cuda(op, "values", i, values[i]);
  const PackedLists lists(op, values, grads, momentum_buffers, indices, momentum);
  const SgdScalars<float> scalars(weight_decay, momentum, lr, dampening, nesterov, maximize, is_first_step, false, false);
  launch_groups(op, lists, values, scalars, false, {std::nullopt, grad_scale, found_inf}, cuda::launch_packed_sgd);
}

}  // namespace

SK_CUDA_LIBRARY(m) {
  m.impl("masked_sgd_", &masked_sgd_cuda);
  m.impl("masked_sgd_.tensor_lr", &masked_sgd_tensor_lr_cuda);
  m.impl("packed_sgd_", &packed_sgd_cuda);
}

}  // namespace sparsekern

#ifndef SPARSEKERN_SIMT
// For diagnosis: whether this library found torch's CUDA half when it was loaded.
extern "C" __attribute__((visibility("default"))) int sparsekern_torch_has_cuda() { return sparsekern::cuda::torch_has_cuda(); }
#endif
