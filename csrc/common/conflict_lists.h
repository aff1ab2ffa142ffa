// The tensor lists of a conflict projection, checked once and turned into raw pointers; for the CPU and the CUDA bindings.
#pragma once
#include <optional>
#include <utility>
#include <vector>

#include "common/sgd_lists.h"

namespace sparsekern {

// A pair of gradients; `b` is null where the index takes no part in the products and is not projected.
struct Pair {
  const void* a = nullptr;
  const void* b = nullptr;
  MaskView mask;
  at::ScalarType type;
};

// g_j[i] for g_i[i]: null for an empty tensor, else the same shape and dtype.
inline const void* partner(const char* op, size_t i, const at::Tensor& b, const at::Tensor& a, const at::Tensor& layout,
                           std::vector<at::Tensor>& kept) {
  if (b.numel() == 0) return nullptr;
  check_like(op, "g_j", i, b, a);
  TORCH_CHECK_TYPE(b.scalar_type() == a.scalar_type(), op, ": g_j[", i, "]: expected ", a.scalar_type(), " like g_i, got ", b.scalar_type());
  return data_like(b, layout, kept);
}

struct PairLists : CheckedLists<Pair> {
  PairLists(const char* op, at::TensorList g_i, at::TensorList g_j, const std::optional<at::TensorList>& masks) {
    check_same_length(op, "g_j", g_j.size(), g_i.size());
    if (masks) check_same_length(op, "masks", masks->size(), g_i.size());
    for (size_t i = 0; i < g_i.size(); ++i) {
      const at::Tensor& a = g_i[i];
      check_mutable(op, "g_i", i, a);
      check_dtypes(op, a.scalar_type(), a.scalar_type());
      at::Tensor mask_copy;
      Pair e;
      if (masks) e.mask = mask_view(op, "masks", i, (*masks)[i], a, mask_copy);
      if (mask_copy.defined()) kept_.push_back(std::move(mask_copy));
      e.a = a.mutable_data_ptr();
      e.b = partner(op, i, g_j[i], a, a, kept_);
      e.type = a.scalar_type();
      entries_.push_back(e);
      numel_.push_back(a.numel());
    }
  }
  const std::vector<Pair>& pairs() const { return entries_; }
};

struct ProjectedSgdLists : SgdLists {
  ProjectedSgdLists(const char* op, at::TensorList params, at::TensorList g_i, at::TensorList g_j, at::TensorList buffers, at::TensorList masks,
                    double momentum, bool invert)
      : SgdLists(op, params, g_i, buffers, masks, momentum, "g_i") {
    check_same_length(op, "g_j", g_j.size(), params.size());
    for (size_t i = 0; i < params.size(); ++i) {
      const SgdTensor& x = entries_[i];
      const void* b = partner(op, i, g_j[i], g_i[i], params[i], kept_);
      const bool all_hidden = invert && x.mask.kind == MaskKind::none;
      pairs_.push_back({x.grad, all_hidden ? nullptr : b, x.mask, x.grad_type});
    }
  }
  const std::vector<Pair>& pairs() const { return pairs_; }

 private:
  std::vector<Pair> pairs_;
};

inline void check_stats(const char* op, const std::optional<at::Tensor>& stats, int64_t rows, c10::Device device) {
  if (!stats) return;
  TORCH_CHECK_TYPE(stats->scalar_type() == at::kFloat, op, ": stats: expected float32, got ", stats->scalar_type());
  TORCH_CHECK_VALUE(stats->device() == device, op, ": stats: expected a tensor on ", device, " like the gradients, got ", stats->device(),
                    "; move it with .to()");
  TORCH_CHECK_VALUE(stats->dim() == 2 && stats->size(0) == rows && stats->size(1) == 4 && stats->is_contiguous(), op,
                    ": stats: expected a contiguous [", rows, ", 4] tensor, got shape ", stats->sizes(), " with strides ", stats->strides());
}

}  // namespace sparsekern
