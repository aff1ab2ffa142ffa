// Lists of tensors and numbers as the selection's launcher takes them, checked; for the bindings of topk_mask and prune_regrow_.
#pragma once
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>
#include <vector>

#include "common/segment_k.h"
#include "cuda/select.h"
#include "cuda/stream.h"

namespace sparsekern::cuda {

using OptionalList = std::optional<c10::List<at::Tensor>>;

inline MaskForm mask_form(MaskKind kind) {
  return kind == MaskKind::bools ? MaskForm::bools : kind == MaskKind::bits ? MaskForm::bits : MaskForm::none;
}

// One number per segment, from the host or from a tensor that stays on the device.
struct SegmentK {
  std::vector<int64_t> host;
  at::Tensor device;  // int64, [] or [segments]

  SegmentK(const char* op, const char* name, at::IntArrayRef k, size_t entries, bool global) : host(k.vec()) {
    check_segments(op, name, host.size(), entries, global);
  }
  SegmentK(const char* op, const char* name, const at::Tensor& k, size_t entries, bool global, c10::Device where) {
    check_k(op, name, k);
    if (k.dim() != 0) check_segments(op, name, k.numel(), entries, global);
    if (!is_device(k)) {
      TORCH_CHECK_VALUE(k.is_cpu(), op, ": ", name, ": expected a tensor on ", where, " or on the CPU, got ", k.device(), "; move it with .to()");
      host = segment_k(op, name, k, entries, global);
      return;
    }
    TORCH_CHECK_VALUE(k.device() == where, op, ": ", name, ": expected a tensor on ", where, " like the scores, or on the CPU, got ", k.device(),
                      "; move it with .to()");
    device = k.contiguous();
  }

  void set(SelectSegment& s, size_t n) const {
    if (device.defined()) s.k_at = device.const_data_ptr<int64_t>() + (device.dim() == 0 ? 0 : n);
    else s.k = host[n];
  }
};

// What one launch ranks. Tensors that the launch reads are kept alive here.
struct SelectLists {
  std::vector<SelectEntry> entries;
  std::vector<SelectSegment> segments;
  std::vector<at::Tensor> keep;

  // `type` is what all scores of a segment have in common: those of another one are widened to fp32.
  SelectEntry& add(const char* op, const char* name, size_t index, const at::Tensor& scores, std::optional<at::ScalarType> type) {
    const auto form = scores.scalar_type();
    TORCH_CHECK_TYPE(form == at::kFloat || form == at::kBFloat16 || form == at::kHalf, op, ": ", name, "[", index,
                     "]: expected float32, bfloat16 or float16 on a CUDA device, got ", form);
    const bool widened = type && *type != form;
    keep.push_back(scores.contiguous());
    SelectEntry e = {};
    e.scores = keep.back().const_data_ptr();
    e.numel = scores.numel();
    e.score_form = form == at::kFloat      ? ScoreForm::f32
                   : form == at::kBFloat16 ? (widened ? ScoreForm::bf16_as_f32 : ScoreForm::bf16)
                                           : (widened ? ScoreForm::f16_as_f32 : ScoreForm::f16);
    entries.push_back(e);
    return entries.back();
  }

  // A segment of all entries from `begin` on.
  SelectSegment& close(const char* op, size_t begin) {
    SelectSegment s = {};
    s.entry_begin = static_cast<int32_t>(begin);
    s.entry_end = static_cast<int32_t>(entries.size());
    int64_t numel = 0;
    for (size_t i = begin; i < entries.size(); ++i) numel += entries[i].numel;
    TORCH_CHECK_VALUE(numel <= kSelectLimit, op, ": expected at most ", kSelectLimit, " elements that are ranked together on a CUDA device, got ",
                      numel, "; split the list");
    segments.push_back(s);
    return segments.back();
  }

  void launch(const char* op, c10::Device device) {
    const SelectPlan plan = plan_select(entries.data(), entries.size(), segments.data(), segments.size());
    const at::Tensor workspace = at::empty({static_cast<int64_t>(plan.bytes)}, at::TensorOptions(at::kByte).device(device));
    SK_CUDA_CHECK(op, launch_select(entries.data(), entries.size(), segments.data(), segments.size(), plan, workspace.mutable_data_ptr(),
                                    device_props(op, device), current_stream(op, device)));
  }
};

inline void check_one_device(const char* op, const char* name, size_t index, const at::Tensor& t, c10::Device device) {
  check_cuda(op, name, index, t);
  TORCH_CHECK_VALUE(t.device() == device, op, ": ", name, "[", index, "]: expected a tensor on ", device, ", got ", t.device(),
                    "; move it with .to()");
}

}  // namespace sparsekern::cuda
