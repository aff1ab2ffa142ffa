// Checks and registration of prune_regrow_ on CUDA: two selections into packed bits, in the same launches unless the second needs the
// first, then one pass over what flips. Nothing here waits for the device.
#include <ATen/ops/zeros.h>

#include <tuple>

#include "common/prune_lists.h"
#include "cuda/prune_regrow.h"
#include "cuda/select_lists.h"

namespace sparsekern {
namespace {

constexpr const char* op = "prune_regrow_";

// The bits of a whole list in one allocation.
struct Bits {
  std::vector<int64_t> at;
  at::Tensor words;
  Bits(at::TensorList weights, c10::Device device) {
    int64_t total = 0;
    for (const at::Tensor& w : weights) {
      at.push_back(total);
      total += packed_words(w.numel());
    }
    words = at::empty({total}, at::TensorOptions(at::kInt).device(device));
  }
  uint32_t* get(size_t i) const { return static_cast<uint32_t*>(words.mutable_data_ptr()) + at[i]; }
};

at::ScalarType common_type(at::TensorList tensors) {
  at::ScalarType type = tensors[0].scalar_type();
  for (const at::Tensor& x : tensors) type = c10::promoteTypes(type, x.scalar_type());
  return type;
}

// One of the two selections: its scores, which masks it reads, which bits it writes.
struct Side {
  const char* name;
  std::vector<at::Tensor> scores;
  const cuda::SegmentK& k;
  const Bits& out;
  bool use_abs, drop;
};

void add_side(cuda::SelectLists& lists, const Side& side, const std::vector<MaskView>& eligible, bool inverted, bool global) {
  const auto type = global ? std::optional(common_type(side.scores)) : std::nullopt;
  const size_t begin = lists.entries.size(), first = lists.segments.size();
  for (size_t i = 0; i < side.scores.size(); ++i) {
    cuda::SelectEntry& e = lists.add(op, side.name, i, side.scores[i], type);
    e.eligible = eligible[i].data;
    e.eligible_form = cuda::mask_form(eligible[i].kind);
    e.eligible_inverted = inverted;
    e.mask = side.out.get(i);
    e.mask_form = cuda::MaskForm::bits;
    if (!global) lists.close(op, begin + i);
  }
  if (global) lists.close(op, begin);
  for (size_t n = first; n < lists.segments.size(); ++n) {
    cuda::SelectSegment& s = lists.segments[n];
    side.k.set(s, n - first);
    s.largest = true;
    s.use_abs = side.use_abs;
    s.drop = side.drop;
  }
}

template <class K>
std::tuple<at::Tensor, at::Tensor> prune_regrow_cuda(at::TensorList masks, at::TensorList weights, at::TensorList grow_scores, K k_drop, K k_grow,
                                                     const cuda::OptionalList& drop_scores, bool global, bool regrow_dropped,
                                                     c10::string_view on_drop, c10::string_view on_grow, const cuda::OptionalList& momentum_buffers) {
  const size_t entries = weights.size();
  check_same_length(op, "masks", masks.size(), entries);
  check_same_length(op, "grow_scores", grow_scores.size(), entries);
  if (drop_scores) check_same_length(op, "drop_scores", drop_scores->size(), entries);
  if (momentum_buffers) check_same_length(op, "momentum_buffers", momentum_buffers->size(), entries);
  for (size_t i = 0; i < entries; ++i) cuda::check_one_device(op, "weights", i, weights[i], weights[0].device());
  const auto numbers = [&](const char* name, const K& k) {
    if constexpr (std::is_same_v<K, at::IntArrayRef>) return cuda::SegmentK(op, name, k, entries, global);
    else return cuda::SegmentK(op, name, k, entries, global, weights.empty() ? k.device() : weights[0].device());
  };
  const cuda::SegmentK fewer = numbers("k_drop", k_drop), more = numbers("k_grow", k_grow);
  const bool zero_dropped = zeroes(op, "on_drop", on_drop), zero_grown = zeroes(op, "on_grow", on_grow);
  const int64_t segments = global ? 1 : static_cast<int64_t>(entries);
  if (entries == 0) return {at::zeros({segments}, at::kLong), at::zeros({segments}, at::kLong)};

  const c10::Device device = weights[0].device();
  const c10::DeviceGuard guard(device);
  const Bits kept(weights, device), grown(weights, device);
  Side drop = {drop_scores ? "drop_scores" : "weights", {}, fewer, kept, !drop_scores, true}, grow = {"grow_scores", {}, more, grown, true, false};
  std::vector<Written> written;
  std::vector<MaskView> before, survivors;
  std::vector<cuda::FlipEntry> flips;
  for (size_t i = 0; i < entries; ++i) {
    const at::Tensor& w = weights[i];
    check_mutable(op, "weights", i, w);
    const Written mask(masks[i]), values(w);
    before.push_back(written_mask(op, i, mask, w));
    survivors.push_back({MaskKind::bits, kept.get(i)});
    drop.scores.push_back(drop_scores ? at::Tensor(drop_scores->get(i)) : values.rows);
    grow.scores.push_back(grow_scores[i]);
    check_like(op, drop.name, i, drop.scores[i], w);
    check_like(op, grow.name, i, grow.scores[i], w);
    cuda::FlipEntry flip = {};
    flip.mask = const_cast<void*>(before[i].data);
    flip.mask_form = cuda::mask_form(before[i].kind);
    flip.kept = kept.get(i);
    flip.grown = grown.get(i);
    flip.numel = w.numel();
    flip.segment = global ? 0 : static_cast<int32_t>(i);
    written.push_back(mask);
    if (zero_dropped || zero_grown) {
      flip.weight = values.rows.mutable_data_ptr();
      flip.weight_width = static_cast<int8_t>(w.element_size());
      written.push_back(values);
    }
    if (momentum_buffers) {
      const at::Tensor buffer = momentum_buffers->get(i);
      check_like(op, "momentum_buffers", i, buffer, w);
      check_mutable(op, "momentum_buffers", i, buffer);
      written.emplace_back(buffer);
      flip.momentum = written.back().rows.mutable_data_ptr();
      flip.momentum_width = static_cast<int8_t>(buffer.element_size());
    }
    if (flip.numel != 0) flips.push_back(flip);
  }

  cuda::SelectLists lists, second;
  add_side(lists, drop, before, false, global);
  add_side(regrow_dropped ? second : lists, grow, regrow_dropped ? survivors : before, true, global);
  lists.launch(op, device);
  if (regrow_dropped) second.launch(op, device);
  at::Tensor dropped = at::empty({segments}, weights[0].options().dtype(at::kLong)), added = at::empty({segments}, dropped.options());
  const cuda::FlipOptions options = {zero_dropped, zero_grown, dropped.mutable_data_ptr<int64_t>(), added.mutable_data_ptr<int64_t>(), segments};
  SK_CUDA_CHECK(op, cuda::launch_flips(flips.data(), flips.size(), options, cuda::device_props(op, device), cuda::current_stream(op, device)));
  for (const Written& x : written) x.write_back();
  return {dropped, added};
}

}  // namespace

SK_CUDA_LIBRARY(m) {
  m.impl("prune_regrow_", &prune_regrow_cuda<const at::Tensor&>);
  m.impl("prune_regrow_.int_k", &prune_regrow_cuda<at::IntArrayRef>);
}

}  // namespace sparsekern
