// Checks and registration of prune_regrow_: two selections (select.cpp) into packed bits, then one pass over what flips.
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <memory>
#include <optional>
#include <tuple>

#include "common/prune_lists.h"
#include "common/segment_k.h"
#include "cpu/pieces.h"
#include "cpu/select.h"

namespace sparsekern {
namespace {

struct Flips {
  int64_t dropped = 0, grown = 0;
};

// A tensor that becomes +0 where elements are dropped, grown, or both; null: it stays as it is.
struct ZeroedRow {
  char* data = nullptr;
  int64_t width = 0;
  bool at_dropped = false, at_grown = false;

  void clear(int64_t i, bool grown) const {
    if (data != nullptr && (grown ? at_grown : at_dropped)) std::memset(data + i * width, 0, width);
  }
};

}  // namespace
}  // namespace sparsekern

#define SK_KERNEL_FILE "cpu/prune_regrow.h"
#include "cpu/for_each_isa.h"

namespace sparsekern {
namespace {

constexpr const char* op = "prune_regrow_";
using Lists = std::optional<c10::List<at::Tensor>>;
using Bits = std::vector<std::unique_ptr<uint32_t[]>>;

std::vector<MaskOut> new_bits(const std::vector<ScoreView>& entries, Bits& bits) {
  std::vector<MaskOut> outputs;
  for (const ScoreView& x : entries) {
    bits.emplace_back(new uint32_t[packed_words(x.numel)]);
    outputs.push_back({MaskKind::bits, bits.back().get(), 0});
  }
  return outputs;
}

std::tuple<at::Tensor, at::Tensor> prune_regrow_int_k_cpu(at::TensorList masks, at::TensorList weights, at::TensorList grow_scores,
                                                          at::IntArrayRef k_drop, at::IntArrayRef k_grow, const Lists& drop_scores, bool global,
                                                          bool regrow_dropped, c10::string_view on_drop, c10::string_view on_grow,
                                                          const Lists& momentum_buffers) {
  const size_t entries = weights.size();
  check_same_length(op, "masks", masks.size(), entries);
  check_same_length(op, "grow_scores", grow_scores.size(), entries);
  if (drop_scores) check_same_length(op, "drop_scores", drop_scores->size(), entries);
  if (momentum_buffers) check_same_length(op, "momentum_buffers", momentum_buffers->size(), entries);
  check_segments(op, "k_drop", k_drop.size(), entries, global);
  check_segments(op, "k_grow", k_grow.size(), entries, global);
  const bool zero_dropped = zeroes(op, "on_drop", on_drop), zero_grown = zeroes(op, "on_grow", on_grow);

  std::vector<at::Tensor> kept_alive;
  std::vector<Written> written;
  std::vector<MaskOut> mask_out;
  std::vector<ScoreView> drop, grow;
  std::vector<ZeroedRow> weight_rows(entries), momentum_rows(entries);
  std::vector<int64_t> numel;
  // Values of the two widths compare in the wider one.
  const auto view = [&](const char* name, size_t i, const at::Tensor& t, bool widen) {
    check_like(op, name, i, t, weights[i]);
    return score_view(op, name, i, widen && t.is_floating_point() ? t.to(at::kDouble) : t, kept_alive);
  };
  bool wide_drop = false, wide_grow = false;
  for (size_t i = 0; global && i < entries; ++i) {
    wide_drop |= (drop_scores ? at::Tensor(drop_scores->get(i)) : weights[i]).scalar_type() == at::kDouble;
    wide_grow |= grow_scores[i].scalar_type() == at::kDouble;
  }
  for (size_t i = 0; i < entries; ++i) {
    const at::Tensor& w = weights[i];
    check_mutable(op, "weights", i, w);
    const Written mask(masks[i]), values(w);
    const MaskView rows = written_mask(op, i, mask, w);
    mask_out.push_back({rows.kind, const_cast<void*>(rows.data), 0});
    drop.push_back(view(drop_scores ? "drop_scores" : "weights", i, drop_scores ? at::Tensor(drop_scores->get(i)) : values.rows, wide_drop));
    grow.push_back(view("grow_scores", i, grow_scores[i], wide_grow));
    drop[i].eligible = grow[i].eligible = {mask_out[i].kind, mask_out[i].data};
    grow[i].invert = true;
    written.push_back(mask);
    if (zero_dropped || zero_grown) {
      weight_rows[i] = {static_cast<char*>(values.rows.mutable_data_ptr()), w.element_size(), zero_dropped, zero_grown};
      written.push_back(values);
    }
    if (momentum_buffers) {
      const at::Tensor buffer = momentum_buffers->get(i);
      check_like(op, "momentum_buffers", i, buffer, w);
      check_mutable(op, "momentum_buffers", i, buffer);
      written.emplace_back(buffer);
      momentum_rows[i] = {static_cast<char*>(written.back().rows.mutable_data_ptr()), buffer.element_size(), true, true};
    }
    numel.push_back(w.numel());
    kept_alive.push_back(mask.rows);
  }

  Bits kept, grown;
  std::vector<int64_t> k = count_eligible(drop, global);
  for (size_t s = 0; s < k.size(); ++s) k[s] -= std::clamp<int64_t>(k_drop[s], 0, k[s]);
  select_elements(drop, new_bits(drop, kept), k, {true, !drop_scores, global});
  for (size_t i = 0; regrow_dropped && i < entries; ++i) grow[i].eligible = {MaskKind::bits, kept[i].get()};
  k = count_eligible(grow, global);
  for (size_t s = 0; s < k.size(); ++s) k[s] = std::clamp<int64_t>(k_grow[s], 0, k[s]);
  select_elements(grow, new_bits(grow, grown), k, {true, true, global});

  const Pieces pieces(numel);
  std::vector<Flips> partial(pieces.count());
  pieces.each([&](int64_t piece, int64_t t, int64_t begin, int64_t end) {
    partial[piece] = SK_PICK(prune_regrow_piece)(mask_out[t], kept[t].get(), grown[t].get(), weight_rows[t], momentum_rows[t], begin, end);
  });
  for (const Written& x : written) x.write_back();

  const int64_t segments = static_cast<int64_t>(k.size());
  std::vector<Flips> total(segments);
  for (size_t t = 0; t < entries; ++t)
    for (int64_t p = pieces.first[t]; p < pieces.first[t + 1]; ++p) {
      total[global ? 0 : t].dropped += partial[p].dropped;
      total[global ? 0 : t].grown += partial[p].grown;
    }
  at::Tensor dropped = at::empty({segments}, at::kLong), added = at::empty({segments}, at::kLong);
  for (int64_t s = 0; s < segments; ++s) {
    dropped.mutable_data_ptr<int64_t>()[s] = total[s].dropped;
    added.mutable_data_ptr<int64_t>()[s] = total[s].grown;
  }
  return {dropped, added};
}

std::tuple<at::Tensor, at::Tensor> prune_regrow_cpu(at::TensorList masks, at::TensorList weights, at::TensorList grow_scores,
                                                    const at::Tensor& k_drop, const at::Tensor& k_grow, const Lists& drop_scores, bool global,
                                                    bool regrow_dropped, c10::string_view on_drop, c10::string_view on_grow,
                                                    const Lists& momentum_buffers) {
  return prune_regrow_int_k_cpu(masks, weights, grow_scores, segment_k(op, "k_drop", k_drop, weights.size(), global),
                                segment_k(op, "k_grow", k_grow, weights.size(), global), drop_scores, global, regrow_dropped, on_drop, on_grow,
                                momentum_buffers);
}

}  // namespace

TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("prune_regrow_", &prune_regrow_cpu);
  m.impl("prune_regrow_.int_k", &prune_regrow_int_k_cpu);
}

}  // namespace sparsekern
