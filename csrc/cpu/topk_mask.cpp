// Checks, outputs and registration of topk_mask and select_threshold; the work is in select.cpp.
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/DefaultDtype.h>
#include <torch/library.h>

#include <limits>
#include <optional>
#include <tuple>

#include "common/segment_k.h"
#include "cpu/select.h"

namespace sparsekern {
namespace {

using Eligible = std::optional<c10::List<at::Tensor>>;

struct Call {
  std::vector<at::Tensor> masks;
  at::Tensor thresholds, counts;
};

// The type all scores fit in without rounding; that of an empty list is the default one.
at::ScalarType common_type(at::TensorList scores) {
  if (scores.empty()) return c10::get_default_dtype_as_scalartype();
  at::ScalarType type = scores[0].scalar_type();
  for (const at::Tensor& x : scores) type = c10::promoteTypes(type, x.scalar_type());
  return type;
}

Call select_lists(const char* op, at::TensorList scores, std::vector<int64_t> k, bool largest, bool use_abs, bool global, const Eligible& eligible,
                  bool wants_masks, bool packed) {
  check_segments(op, "k", k.size(), scores.size(), global);
  if (eligible) check_same_length(op, "eligible", eligible->size(), scores.size());
  const at::ScalarType type = common_type(scores);
  std::vector<at::Tensor> kept;
  std::vector<ScoreView> views;
  for (size_t i = 0; i < scores.size(); ++i) {
    // Values of the two widths compare in the wider one.
    const bool widen = global && type == at::kDouble && scores[i].is_floating_point();
    const at::Tensor values = widen ? scores[i].to(at::kDouble) : scores[i];
    views.push_back(score_view(op, "scores", i, values, kept));
    if (!eligible) continue;
    at::Tensor copy;
    views[i].eligible = mask_view(op, "eligible", i, eligible->get(i), at::Tensor(kept.back()), copy);
    kept.push_back(eligible->get(i));
    if (copy.defined()) kept.push_back(std::move(copy));
  }
  const std::vector<int64_t> available = count_eligible(views, global);
  for (size_t s = 0; s < k.size(); ++s) k[s] = std::clamp<int64_t>(k[s], 0, available[s]);

  Call result;
  std::vector<MaskOut> outputs;
  for (size_t i = 0; wants_masks && i < scores.size(); ++i) {
    result.masks.push_back(packed ? at::empty({packed_words(scores[i].numel())}, at::kInt) : at::empty(scores[i].sizes(), at::kBool));
    outputs.push_back({packed ? MaskKind::bits : MaskKind::bools, result.masks.back().mutable_data_ptr(), 0});
  }
  const Selected selected = select_elements(views, outputs, k, {largest, use_abs, global});
  const int64_t segments = static_cast<int64_t>(k.size());
  at::Tensor thresholds = at::empty({segments}, at::kDouble);
  result.counts = at::empty({segments}, at::kLong);
  for (int64_t s = 0; s < segments; ++s) {
    thresholds.mutable_data_ptr<double>()[s] = selected.thresholds[s];
    result.counts.mutable_data_ptr<int64_t>()[s] = k[s];
  }
  result.thresholds = thresholds.to(type);
  return result;
}

using Masks = std::tuple<std::vector<at::Tensor>, at::Tensor, at::Tensor>;
using Thresholds = std::tuple<at::Tensor, at::Tensor>;

Masks topk_mask_int_k_cpu(at::TensorList scores, at::IntArrayRef k, bool largest, bool use_abs, bool global, const Eligible& eligible, bool packed,
                          const std::optional<at::Tensor>& hint) {
  Call call = select_lists("topk_mask", scores, k.vec(), largest, use_abs, global, eligible, true, packed);
  return {std::move(call.masks), std::move(call.thresholds), std::move(call.counts)};
}

Masks topk_mask_cpu(at::TensorList scores, const at::Tensor& k, bool largest, bool use_abs, bool global, const Eligible& eligible, bool packed,
                    const std::optional<at::Tensor>& hint) {
  return topk_mask_int_k_cpu(scores, segment_k("topk_mask", "k", k, scores.size(), global), largest, use_abs, global, eligible, packed, hint);
}

Thresholds select_threshold_int_k_cpu(at::TensorList scores, at::IntArrayRef k, bool largest, bool use_abs, bool global, const Eligible& eligible,
                                      const std::optional<at::Tensor>& hint) {
  Call call = select_lists("select_threshold", scores, k.vec(), largest, use_abs, global, eligible, false, false);
  return {std::move(call.thresholds), std::move(call.counts)};
}

Thresholds select_threshold_cpu(at::TensorList scores, const at::Tensor& k, bool largest, bool use_abs, bool global, const Eligible& eligible,
                                const std::optional<at::Tensor>& hint) {
  return select_threshold_int_k_cpu(scores, segment_k("select_threshold", "k", k, scores.size(), global), largest, use_abs, global, eligible, hint);
}

}  // namespace

TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("topk_mask", &topk_mask_cpu);
  m.impl("topk_mask.int_k", &topk_mask_int_k_cpu);
  m.impl("select_threshold", &select_threshold_cpu);
  m.impl("select_threshold.int_k", &select_threshold_int_k_cpu);
}

}  // namespace sparsekern
