// Checks, pieces and registration of masked_sgd_ and packed_sgd_; the kernels are in masked_sgd.h.
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <atomic>
#include <optional>

#include "common/check.h"
#include "common/sgd_scalars.h"
#include "cpu/pieces.h"
#include "cpu/sgd_lists.h"

#define SK_KERNEL_FILE "cpu/masked_sgd.h"
#include "cpu/for_each_isa.h"

namespace sparsekern {
namespace {

void masked_sgd_cpu(at::TensorList params, at::TensorList grads, at::TensorList momentum_buffers, at::TensorList masks, double weight_decay,
                    double momentum, double lr, double dampening, bool nesterov, bool maximize, bool is_first_step, c10::string_view outside,
                    bool invert, bool assume_clean, const std::optional<at::Tensor>& grad_scale, const std::optional<at::Tensor>& found_inf) {
  constexpr const char* op = "masked_sgd_";
  SgdLists lists(op, params, grads, momentum_buffers, masks, momentum);
  const bool zero_outside = outside_is_zero(op, outside);
  if (overflowed(found_inf)) return;
  const double inverse_scale = inverse_grad_scale(grad_scale);
  Pieces(lists.numel()).each([&](int64_t, int64_t t, int64_t begin, int64_t end) {
    const SgdTensor& x = lists[t];
    for_dtypes(op, x.param_type, x.grad_type, [&](auto p, auto g) {
      using P = decltype(p);
      using G = decltype(g);
      using A = Arith<P>;
      SgdScalars<A> s(weight_decay, momentum, lr, dampening, nesterov, maximize, is_first_step, zero_outside, invert);
      SK_PICK(masked_sgd_piece<P, G>)(static_cast<P*>(x.param), static_cast<const G*>(x.grad), static_cast<P*>(x.momentum), x.mask, begin, end, s,
                                      static_cast<A>(inverse_scale));
    });
  });
}

void masked_sgd_tensor_lr_cpu(at::TensorList params, at::TensorList grads, at::TensorList momentum_buffers, at::TensorList masks, double weight_decay,
                              double momentum, const at::Tensor& lr, double dampening, bool nesterov, bool maximize, bool is_first_step,
                              c10::string_view outside, bool invert, bool assume_clean, const std::optional<at::Tensor>& grad_scale,
                              const std::optional<at::Tensor>& found_inf) {
  masked_sgd_cpu(params, grads, momentum_buffers, masks, weight_decay, momentum, lr.item().toDouble(), dampening, nesterov, maximize, is_first_step,
                 outside, invert, assume_clean, grad_scale, found_inf);
}

void packed_sgd_cpu(at::TensorList values, at::TensorList grads, at::TensorList momentum_buffers, const c10::List<std::optional<at::Tensor>>& indices,
                    double weight_decay, double momentum, double lr, double dampening, bool nesterov, bool maximize, bool is_first_step,
                    const std::optional<at::Tensor>& grad_scale, const std::optional<at::Tensor>& found_inf) {
  constexpr const char* op = "packed_sgd_";
  PackedLists lists(op, values, grads, momentum_buffers, indices, momentum);
  if (overflowed(found_inf)) return;
  const double inverse_scale = inverse_grad_scale(grad_scale);
  const Pieces pieces(lists.numel());
  std::atomic<int64_t> stale{-1};
  pieces.each([&](int64_t, int64_t t, int64_t begin, int64_t end) {
    const PackedTensor& x = lists[t];
    const bool inside =
        x.index == nullptr || (x.wide ? SK_PICK(indices_inside<int64_t>)(static_cast<const int64_t*>(x.index), begin, end, x.grad_numel)
                                      : SK_PICK(indices_inside<int32_t>)(static_cast<const int32_t*>(x.index), begin, end, x.grad_numel));
    if (!inside) stale = t;
  });
  TORCH_CHECK_INDEX(stale < 0, op, ": indices[", stale.load(), "]: expected flat positions in [0, ", lists[std::max<int64_t>(stale, 0)].grad_numel,
                    "), got one outside");
  pieces.each([&](int64_t, int64_t t, int64_t begin, int64_t end) {
    const PackedTensor& x = lists[t];
    for_dtypes(op, x.param_type, x.grad_type, [&](auto p, auto g) {
      using P = decltype(p);
      using G = decltype(g);
      using A = Arith<P>;
      SgdScalars<A> s(weight_decay, momentum, lr, dampening, nesterov, maximize, is_first_step, false, false);
      auto* value = static_cast<P*>(x.param);
      auto* grad = static_cast<const G*>(x.grad);
      auto* buffer = static_cast<P*>(x.momentum);
      auto scale = static_cast<A>(inverse_scale);
      if (x.wide) SK_PICK(packed_sgd_piece<int64_t, P, G>)(value, grad, buffer, static_cast<const int64_t*>(x.index), begin, end, s, scale);
      else SK_PICK(packed_sgd_piece<int32_t, P, G>)(value, grad, buffer, static_cast<const int32_t*>(x.index), begin, end, s, scale);
    });
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("masked_sgd_", &masked_sgd_cpu);
  m.impl("masked_sgd_.tensor_lr", &masked_sgd_tensor_lr_cpu);
  m.impl("packed_sgd_", &packed_sgd_cpu);
}

}  // namespace sparsekern
