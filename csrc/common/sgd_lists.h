// The tensor lists of an SGD step, checked once and turned into raw pointers; for the CPU and the CUDA bindings.
#pragma once
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "common/check.h"

namespace sparsekern {

struct SgdTensor {
  void* param = nullptr;
  const void* grad = nullptr;
  void* momentum = nullptr;  // null when momentum is 0
  MaskView mask;
  at::ScalarType param_type, grad_type;
};

struct PackedTensor {
  void* param = nullptr;
  const void* grad = nullptr;
  void* momentum = nullptr;
  const void* index = nullptr;  // null: the gradient is packed too
  bool wide = false;            // int64 indices
  int64_t grad_numel = 0;       // what the indices must stay below: read and checked on the CPU only, a GPU would make the host wait
  at::ScalarType param_type, grad_type;
};

inline bool outside_is_zero(const char* op, c10::string_view outside) {
  TORCH_CHECK_VALUE(outside == "keep" || outside == "zero", op, ": outside: expected \"keep\" or \"zero\", got \"", outside, "\"");
  return outside == "zero";
}

// Calls fn(P{}, G{}) for a supported pair: equal types, or fp32 params with half-precision gradients.
template <class Fn>
void for_dtypes(const char* op, at::ScalarType param, at::ScalarType grad, const Fn& fn) {
  using at::ScalarType;
  if (param == ScalarType::Float && grad == ScalarType::Float) return fn(float{}, float{});
  if (param == ScalarType::Float && grad == ScalarType::BFloat16) return fn(float{}, c10::BFloat16{});
  if (param == ScalarType::Float && grad == ScalarType::Half) return fn(float{}, c10::Half{});
  if (param == ScalarType::BFloat16 && grad == ScalarType::BFloat16) return fn(c10::BFloat16{}, c10::BFloat16{});
  if (param == ScalarType::Half && grad == ScalarType::Half) return fn(c10::Half{}, c10::Half{});
  if (param == ScalarType::Double && grad == ScalarType::Double) return fn(double{}, double{});
  TORCH_CHECK_TYPE(false, op, ": unsupported pair of dtypes: param ", param, " with grad ", grad,
                   "; supported: equal float32, bfloat16, float16 or float64, and float32 params with bfloat16 or float16 grads");
}

inline void check_dtypes(const char* op, at::ScalarType param, at::ScalarType grad) {
  for_dtypes(op, param, grad, [](auto, auto) {});
}

// `t` with the layout of `like`, copied only when it differs; the copy is kept alive in `kept`.
inline const void* data_like(const at::Tensor& t, const at::Tensor& like, std::vector<at::Tensor>& kept) {
  if (same_layout(t, like)) return t.const_data_ptr();
  kept.push_back(t.new_empty_strided(like.sizes(), like.strides()));
  kept.back().copy_(t);
  return kept.back().const_data_ptr();
}

template <class Entry>
class CheckedLists {
 public:
  const Entry& operator[](int64_t i) const { return entries_[i]; }
  size_t size() const { return entries_.size(); }
  std::vector<int64_t> numel() const { return numel_; }

 protected:
  // Momentum buffers: none when momentum is 0, else one per tensor, in its dtype and layout.
  void* momentum_at(const char* op, at::TensorList buffers, size_t i, const at::Tensor& like, double momentum) {
    if (momentum == 0) return nullptr;
    const at::Tensor& v = buffers[i];
    check_like(op, "momentum_buffers", i, v, like);
    TORCH_CHECK_TYPE(v.scalar_type() == like.scalar_type(), op, ": momentum_buffers[", i, "]: expected ", like.scalar_type(), " like the param, got ",
                     v.scalar_type());
    TORCH_CHECK_VALUE(same_layout(v, like), op, ": momentum_buffers[", i, "]: expected the param's strides ", like.strides(), ", got ", v.strides(),
                      "; allocate it with torch.zeros_like(param)");
    return v.mutable_data_ptr();
  }
  std::vector<Entry> entries_;
  std::vector<int64_t> numel_;
  std::vector<at::Tensor> kept_;
};

class SgdLists : public CheckedLists<SgdTensor> {
 public:
  SgdLists(const char* op, at::TensorList params, at::TensorList grads, at::TensorList buffers, at::TensorList masks, double momentum,
           const char* grads_name = "grads") {
    check_same_length(op, grads_name, grads.size(), params.size());
    check_same_length(op, "masks", masks.size(), params.size());
    if (momentum != 0) check_same_length(op, "momentum_buffers", buffers.size(), params.size());
    entries_.resize(params.size());
    numel_.resize(params.size());
    for (size_t i = 0; i < params.size(); ++i) {
      const at::Tensor &p = params[i], &g = grads[i];
      check_mutable(op, "params", i, p);
      check_like(op, grads_name, i, g, p);
      check_dtypes(op, p.scalar_type(), g.scalar_type());
      at::Tensor mask_copy;
      SgdTensor& e = entries_[i];
      e.param = p.mutable_data_ptr();
      e.grad = data_like(g, p, kept_);
      e.momentum = momentum_at(op, buffers, i, p, momentum);
      e.mask = mask_view(op, "masks", i, masks[i], p, mask_copy);
      if (mask_copy.defined()) kept_.push_back(std::move(mask_copy));
      e.param_type = p.scalar_type();
      e.grad_type = g.scalar_type();
      numel_[i] = p.numel();
    }
  }
};

class PackedLists : public CheckedLists<PackedTensor> {
 public:
  PackedLists(const char* op, at::TensorList values, at::TensorList grads, at::TensorList buffers,
              const c10::List<std::optional<at::Tensor>>& indices, double momentum) {
    check_same_length(op, "grads", grads.size(), values.size());
    check_same_length(op, "indices", indices.size(), values.size());
    if (momentum != 0) check_same_length(op, "momentum_buffers", buffers.size(), values.size());
    entries_.resize(values.size());
    numel_.resize(values.size());
    for (size_t i = 0; i < values.size(); ++i) {
      const at::Tensor& p = values[i];
      TORCH_CHECK_VALUE(p.dim() == 1 && p.is_contiguous(), op, ": values[", i, "]: expected a contiguous vector of nonzeros, got sizes ", p.sizes(),
                        " with strides ", p.strides());
      check_dtypes(op, p.scalar_type(), grads[i].scalar_type());
      TORCH_CHECK_VALUE(grads[i].device() == p.device(), op, ": grads[", i, "]: expected a tensor on ", p.device(), ", got ", grads[i].device());
      PackedTensor& e = entries_[i];
      const std::optional<at::Tensor> index = indices.get(i);
      const at::Tensor grad = grads[i].contiguous();
      if (index && index->defined()) {
        e.wide = index->scalar_type() == at::kLong;
        TORCH_CHECK_TYPE(e.wide || index->scalar_type() == at::kInt, op, ": indices[", i, "]: expected int32 or int64, got ", index->scalar_type());
        TORCH_CHECK_VALUE(index->device() == p.device(), op, ": indices[", i, "]: expected a tensor on ", p.device(), ", got ", index->device(),
                          "; move it with .to()");
        TORCH_CHECK_VALUE(index->sizes() == p.sizes(), op, ": indices[", i, "]: expected one index per value, ", p.sizes(), ", got ", index->sizes());
        kept_.push_back(index->contiguous());
        e.index = kept_.back().const_data_ptr();
        e.grad_numel = grad.numel();
      } else {
        TORCH_CHECK_VALUE(grad.numel() == p.numel(), op, ": grads[", i, "]: expected a packed gradient of ", p.numel(), " values, got ", grad.numel(),
                          "; pass indices[", i, "] to gather from a dense one");
      }
      kept_.push_back(grad);
      e.param = p.mutable_data_ptr();
      e.grad = grad.const_data_ptr();
      e.momentum = momentum_at(op, buffers, i, p, momentum);
      e.param_type = p.scalar_type();
      e.grad_type = grad.scalar_type();
      numel_[i] = p.numel();
    }
  }
};

}  // namespace sparsekern
