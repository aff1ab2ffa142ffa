// Checks, pieces and registration of masked_weight; the kernel is in masked_weight.h, the gradient in Python.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <optional>
#include <vector>

#include "common/check.h"
#include "cpu/pieces.h"

#define SK_KERNEL_FILE "cpu/masked_weight.h"
#include "cpu/for_each_isa.h"

namespace sparsekern {
namespace {

constexpr const char* kOp = "masked_weight";

template <class Fn>
void for_float(at::ScalarType type, const char* name, const Fn& fn) {
  using at::ScalarType;
  if (type == ScalarType::Float) return fn(float{});
  if (type == ScalarType::BFloat16) return fn(c10::BFloat16{});
  if (type == ScalarType::Half) return fn(c10::Half{});
  if (type == ScalarType::Double) return fn(double{});
  TORCH_CHECK_TYPE(false, kOp, ": ", name, ": expected float32, bfloat16, float16 or float64, got ", type);
}

struct WeightEntry {
  const void* from = nullptr;
  void* to = nullptr;
  MaskView mask;
  at::ScalarType from_type, to_type;
};

// The output, and what the kernel reads; copies of masks and weights that lie otherwise are kept alive in `kept`.
at::Tensor prepare(size_t i, const at::Tensor& weight, const at::Tensor& mask, std::optional<at::ScalarType> dtype, WeightEntry& e,
                   std::vector<at::Tensor>& kept) {
  e.from_type = weight.scalar_type();
  e.to_type = dtype.value_or(e.from_type);
  for_float(e.from_type, "weights", [](auto) {});
  for_float(e.to_type, "dtype", [](auto) {});
  at::Tensor out = at::empty_like(weight, weight.options().dtype(e.to_type));
  at::Tensor source = weight;
  const bool packed = mask.numel() != 0 && mask.scalar_type() == at::kInt;  // goes with row-major weights only; mask_view says so
  if (!packed && !same_layout(weight, out)) {
    source = weight.new_empty_strided(out.sizes(), out.strides());
    source.copy_(weight);
    kept.push_back(source);
  }
  at::Tensor mask_copy;
  e.mask = mask_view(kOp, "masks", i, mask, source, mask_copy);
  if (mask_copy.defined()) kept.push_back(std::move(mask_copy));
  e.from = source.const_data_ptr();
  e.to = out.mutable_data_ptr();
  return out;
}

void run(const std::vector<WeightEntry>& entries, std::vector<int64_t> numel) {
  Pieces(std::move(numel)).each([&](int64_t, int64_t t, int64_t begin, int64_t end) {
    const WeightEntry& e = entries[t];
    for_float(e.from_type, "weights", [&](auto from) {
      for_float(e.to_type, "dtype", [&](auto to) {
        using T = decltype(from);
        using O = decltype(to);
        SK_PICK(masked_weight_piece<T, O>)(static_cast<const T*>(e.from), static_cast<O*>(e.to), e.mask, begin, end);
      });
    });
  });
}

// grad_mask and dense_grad speak about the gradient only; Python's backward reads them.
at::Tensor masked_weight_cpu(const at::Tensor& weight, const at::Tensor& mask, const std::optional<at::Tensor>& grad_mask, bool dense_grad,
                             std::optional<at::ScalarType> dtype) {
  std::vector<WeightEntry> entries(1);
  std::vector<at::Tensor> kept;
  at::Tensor out = prepare(0, weight, mask, dtype, entries[0], kept);
  run(entries, {weight.numel()});
  return out;
}

std::vector<at::Tensor> masked_weight_list_cpu(at::TensorList weights, at::TensorList masks, std::optional<at::TensorList> grad_masks,
                                               bool dense_grad, std::optional<at::ScalarType> dtype) {
  check_same_length(kOp, "masks", masks.size(), weights.size());
  std::vector<WeightEntry> entries(weights.size());
  std::vector<at::Tensor> kept, out;
  std::vector<int64_t> numel(weights.size());
  out.reserve(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    out.push_back(prepare(i, weights[i], masks[i], dtype, entries[i], kept));
    numel[i] = weights[i].numel();
  }
  run(entries, std::move(numel));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("masked_weight", &masked_weight_cpu);
  m.impl("masked_weight.list", &masked_weight_list_cpu);
}

}  // namespace sparsekern
