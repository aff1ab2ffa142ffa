// Checks, outputs and registration of topk_mask and select_threshold on CUDA. Nothing here waits for the device.
// `hint` is accepted and not used: the sample that brackets the threshold costs less than reading it would save.
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DefaultDtype.h>

#include <limits>
#include <tuple>

#include "cuda/select_lists.h"

namespace sparsekern {
namespace {

struct Call {
  std::vector<at::Tensor> masks;
  at::Tensor thresholds, counts;
};

struct Options {
  bool largest, use_abs, global, masks, packed;
};

template <class K>
Call select_lists(const char* op, at::TensorList scores, const K& given, const cuda::OptionalList& eligible, const Options& o) {
  for (size_t i = 0; i < scores.size(); ++i) cuda::check_one_device(op, "scores", i, scores[i], scores[0].device());
  const auto k = [&] {
    if constexpr (std::is_same_v<K, at::Tensor>)
      return cuda::SegmentK(op, "k", given, scores.size(), o.global, scores.empty() ? given.device() : scores[0].device());
    else return cuda::SegmentK(op, "k", given, scores.size(), o.global);
  }();
  if (eligible) check_same_length(op, "eligible", eligible->size(), scores.size());
  const int64_t segments = o.global ? 1 : static_cast<int64_t>(scores.size());
  Call call;
  if (scores.empty()) {
    call.thresholds = at::full({segments}, std::numeric_limits<double>::quiet_NaN(), c10::get_default_dtype_as_scalartype());
    call.counts = at::zeros({segments}, at::kLong);
    return call;
  }

  at::ScalarType type = scores[0].scalar_type();
  for (const at::Tensor& x : scores) type = c10::promoteTypes(type, x.scalar_type());
  const c10::Device device = scores[0].device();
  const c10::DeviceGuard guard(device);
  cuda::SelectLists lists;
  for (size_t i = 0; i < scores.size(); ++i) {
    cuda::SelectEntry& e = lists.add(op, "scores", i, scores[i], o.global ? std::optional(type) : std::nullopt);
    if (eligible) {
      at::Tensor copy;
      const MaskView view = mask_view(op, "eligible", i, eligible->get(i), at::Tensor(lists.keep.back()), copy);
      e.eligible = view.data;
      e.eligible_form = cuda::mask_form(view.kind);
      lists.keep.push_back(eligible->get(i));
      if (copy.defined()) lists.keep.push_back(std::move(copy));
    }
    if (!o.global) lists.close(op, i);
  }
  if (o.global) lists.close(op, 0);

  for (size_t i = 0; o.masks && i < scores.size(); ++i) {
    call.masks.push_back(o.packed ? at::empty({packed_words(scores[i].numel())}, scores[i].options().dtype(at::kInt))
                                  : at::empty(scores[i].sizes(), scores[i].options().dtype(at::kBool)));
    lists.entries[i].mask = call.masks.back().mutable_data_ptr();
    lists.entries[i].mask_form = o.packed ? cuda::MaskForm::bits : cuda::MaskForm::bools;
  }
  call.thresholds = at::empty({segments}, scores[0].options().dtype(type));
  call.counts = at::empty({segments}, scores[0].options().dtype(at::kLong));
  for (size_t n = 0; n < lists.segments.size(); ++n) {
    cuda::SelectSegment& s = lists.segments[n];
    k.set(s, n);
    s.threshold = static_cast<char*>(call.thresholds.mutable_data_ptr()) + n * call.thresholds.element_size();
    s.threshold_type = cuda::dtype_of(op, "scores", type);
    s.count = call.counts.mutable_data_ptr<int64_t>() + n;
    s.largest = o.largest;
    s.use_abs = o.use_abs;
  }
  lists.launch(op, device);
  return call;
}

using Masks = std::tuple<std::vector<at::Tensor>, at::Tensor, at::Tensor>;
using Thresholds = std::tuple<at::Tensor, at::Tensor>;
using Hint = std::optional<at::Tensor>;

template <class K>
Masks topk_mask_cuda(at::TensorList scores, K k, bool largest, bool use_abs, bool global, const cuda::OptionalList& eligible, bool packed,
                     const Hint&) {
  Call call = select_lists("topk_mask", scores, k, eligible, {largest, use_abs, global, true, packed});
  return {std::move(call.masks), std::move(call.thresholds), std::move(call.counts)};
}

template <class K>
Thresholds select_threshold_cuda(at::TensorList scores, K k, bool largest, bool use_abs, bool global, const cuda::OptionalList& eligible,
                                 const Hint&) {
  Call call = select_lists("select_threshold", scores, k, eligible, {largest, use_abs, global, false, false});
  return {std::move(call.thresholds), std::move(call.counts)};
}

}  // namespace

SK_CUDA_LIBRARY(m) {
  m.impl("topk_mask", &topk_mask_cuda<const at::Tensor&>);
  m.impl("topk_mask.int_k", &topk_mask_cuda<at::IntArrayRef>);
  m.impl("select_threshold", &select_threshold_cuda<const at::Tensor&>);
  m.impl("select_threshold.int_k", &select_threshold_cuda<at::IntArrayRef>);
}

}  // namespace sparsekern
