// Walks segments and their pieces for the kernels of select_kernel.h. Short segments are settled in one go by one thread each;
// long ones go through the same phases together: sample, bracket, split every piece, find the threshold, complete the masks.
#include "cpu/select.h"

#include <ATen/Parallel.h>

#include <atomic>
#include <limits>
#include <utility>

#include "cpu/pieces.h"
#include "cpu/select_types.h"

#define SK_KERNEL_FILE "cpu/select_kernel.h"
#include "cpu/for_each_isa.h"

namespace sparsekern {
namespace {

constexpr int64_t kBlock = 2048;  // keys are made for so many elements at a time: they stay in the first-level cache

// fn(scratch, i) for i in [0, count); threads take what is next, since pieces differ in cost. `elements`: the work in all.
template <class Scratch, class Fn>
void share_out(int64_t count, int64_t elements, const Fn& fn) {
  std::atomic<int64_t> next{0};
  const int64_t threads = elements < 2 * kPiece ? 1 : std::min<int64_t>(at::get_num_threads(), count);
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    Scratch scratch;
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) fn(scratch, i);
  });
}

template <class Fn>
void for_type(at::ScalarType type, const Fn& fn) {
  if (type == at::kFloat) fn(float{});
  else if (type == at::kBFloat16) fn(c10::BFloat16{});
  else if (type == at::kHalf) fn(c10::Half{});
  else fn(double{});
}

struct Nothing {};

// Scores whose keys are of one type.
template <class Key>
class Selector {
  using Format = std::conditional_t<sizeof(Key) == 8, Float64, Float32>;
  using Scores = std::vector<ScoreView>;

  struct Piece {
    int64_t tensor, begin, end;
    Split split;
    std::vector<Key> inside;
    std::vector<uint32_t> where;
    int64_t ties = 0;  // elements of this piece taken among those equal to the threshold
  };
  struct Segment {
    int64_t first, last, numel, k, begin;  // pieces, elements, how many to take, first element in the list
    int attempt = 0;
    Bracket<Key> bracket{0, ~Key(0), false};
    Side side = Side::missed;
    Kth<Key> found{~Key(0), 0};
  };
  struct Scratch {
    std::vector<Key> keys, inside, select;
    std::vector<uint32_t> where;
    Key* room(std::vector<Key>& v, int64_t n) {
      if (static_cast<int64_t>(v.size()) < n) v.resize(n);
      return v.data();
    }
  };

  const Scores& scores_;
  const std::vector<MaskOut>& masks_;
  const KeyOrder<Format> order_;
  std::vector<int64_t> start_;  // first element of each entry in the list, with the total at the end
  std::vector<Piece> pieces_;
  std::vector<int64_t> segment_of_;  // of a piece
  std::vector<Segment> segments_;

 public:
  Selector(const Scores& scores, const std::vector<MaskOut>& masks, const std::vector<int64_t>& k, const SelectOptions& options)
      : scores_(scores), masks_(masks), order_(options.largest, options.use_abs), start_(scores.size() + 1, 0) {
    const int64_t entries = static_cast<int64_t>(scores.size());
    if (options.global) segments_.push_back({0, 0, 0, k[0], 0});
    for (int64_t t = 0; t < entries; ++t) {
      start_[t + 1] = start_[t] + scores[t].numel;
      if (!options.global) segments_.push_back({static_cast<int64_t>(pieces_.size()), 0, 0, k[t], start_[t]});
      for (int64_t begin = 0; begin < scores[t].numel; begin += kPiece) {
        pieces_.push_back({t, begin, std::min(begin + kPiece, scores[t].numel), {}, {}, {}});
        segment_of_.push_back(static_cast<int64_t>(segments_.size()) - 1);
      }
      segments_.back().last = static_cast<int64_t>(pieces_.size());
      segments_.back().numel += scores[t].numel;
    }
  }

  std::vector<Kth<Key>> run() {
    std::vector<int64_t> whole, waiting, split;
    for (int64_t s = 0; s < static_cast<int64_t>(segments_.size()); ++s) {
      const Segment& x = segments_[s];
      if (x.k == 0 || x.last - x.first <= 1)
        for (int64_t p = x.first; p < x.last; ++p) whole.push_back(p);
      else waiting.push_back(s);
    }
    share_out<Scratch>(static_cast<int64_t>(whole.size()), elements_of(whole), [&](Scratch& scratch, int64_t i) { settle(scratch, whole[i]); });
    for (const int64_t s : waiting)
      for (int64_t p = segments_[s].first; p < segments_[s].last; ++p) split.push_back(p);
    while (!waiting.empty()) {
      find_brackets(waiting);
      std::vector<int64_t> pieces, missed;
      for (const int64_t s : waiting)
        for (int64_t p = segments_[s].first; p < segments_[s].last; ++p) pieces.push_back(p);
      share_out<Scratch>(static_cast<int64_t>(pieces.size()), elements_of(pieces),
                         [&](Scratch& scratch, int64_t i) { split_piece(scratch, pieces[i]); });
      share_out<Scratch>(static_cast<int64_t>(waiting.size()), elements_of(pieces) / 16,
                         [&](Scratch& scratch, int64_t i) { resolve(scratch, waiting[i]); });
      for (const int64_t s : waiting)
        if (segments_[s].side == Side::missed) {
          ++segments_[s].attempt;
          missed.push_back(s);
        }
      waiting.swap(missed);
    }
    if (!masks_.empty())
      share_out<Scratch>(static_cast<int64_t>(split.size()), elements_of(split), [&](Scratch& scratch, int64_t i) { complete(scratch, split[i]); });
    std::vector<Kth<Key>> found;
    for (const Segment& x : segments_) found.push_back(x.found);
    return found;
  }

  double value(Key key) const {
    const Key bits = order_.bits(key);
    std::conditional_t<sizeof(Key) == 8, double, float> x;
    std::memcpy(&x, &bits, sizeof(Key));
    return x;
  }

 private:
  int64_t elements_of(const std::vector<int64_t>& pieces) const {
    int64_t sum = 0;
    for (const int64_t p : pieces) sum += pieces_[p].end - pieces_[p].begin;
    return sum;
  }

  MaskOut mask_of(const Piece& x) const {
    if (masks_.empty()) return {};
    const MaskOut& mask = masks_[x.tensor];
    return {mask.kind, mask.data, x.begin};
  }

  void keys_of(const Piece& x, int64_t begin, int64_t end, Key* keys) const {
    const ScoreView& scores = scores_[x.tensor];
    for_type(scores.type, [&](auto type) {
      using T = decltype(type);
      if constexpr (std::is_same_v<KeyOf<T>, Key>)
        SK_PICK(make_keys<T>)(static_cast<const T*>(scores.data), scores.eligible, scores.invert, begin, end, order_, keys);
    });
  }

  Key key_at(const ScoreView& scores, int64_t i) const {
    if (mask_bit(scores.eligible, i) == scores.invert) return kIneligibleKey;
    Key bits = 0;
    for_type(scores.type, [&](auto type) {
      using T = decltype(type);
      const Arith<T> x = static_cast<const T*>(scores.data)[i];
      if constexpr (sizeof(x) == sizeof(Key)) std::memcpy(&bits, &x, sizeof(Key));
    });
    return order_.key(bits);
  }

  static bool mask_bit(const MaskView& mask, int64_t i) {
    if (mask.kind == MaskKind::bools) return static_cast<const uint8_t*>(mask.data)[i] != 0;
    if (mask.kind == MaskKind::bits) return (static_cast<const uint32_t*>(mask.data)[i >> 5] >> (i & 31)) & 1;
    return true;
  }

  // A segment of one piece, or a piece of which nothing is taken: the keys are made once and stay in cache.
  void settle(Scratch& scratch, int64_t p) {
    Piece& x = pieces_[p];
    Segment& segment = segments_[segment_of_[p]];
    const int64_t n = x.end - x.begin;
    Key* keys = scratch.room(scratch.keys, n + 16);
    keys_of(x, x.begin, x.end, keys);
    if (segment.k > 0) segment.found = SK_PICK(kth_largest<Key>)(keys, n, segment.k, scratch.room(scratch.select, scratch_keys(n)));
    int64_t ties = segment.found.ties;
    if (!masks_.empty()) SK_PICK(emit_keys<Key>)(keys, n, segment.found.key, ties, 0, mask_of(x));
  }

  void find_brackets(const std::vector<int64_t>& waiting) {
    constexpr int64_t kDraws = 4096;  // one thread's share of a sample: each draw is likely a cache miss
    struct Share {
      int64_t segment, begin, end;
    };
    std::vector<Share> shares;
    std::vector<std::vector<Key>> samples(waiting.size());
    for (size_t w = 0; w < waiting.size(); ++w) {
      const int64_t m = sample_size(segments_[waiting[w]].numel);
      samples[w].resize(m + 16);
      for (int64_t i = 0; i < m; i += kDraws) shares.push_back({static_cast<int64_t>(w), i, std::min(m, i + kDraws)});
    }
    share_out<Nothing>(static_cast<int64_t>(shares.size()), std::numeric_limits<int64_t>::max(), [&](Nothing&, int64_t i) {
      const Share& share = shares[i];
      const Segment& x = segments_[waiting[share.segment]];
      int64_t t = 0;
      for (int64_t j = share.begin; j < share.end; ++j) {
        const int64_t at = x.begin + sample_position(j, static_cast<int64_t>(samples[share.segment].size()) - 16, x.numel, x.attempt);
        if (at < start_[t] || at >= start_[t + 1]) t = std::upper_bound(start_.begin(), start_.end(), at) - start_.begin() - 1;
        samples[share.segment][j] = key_at(scores_[t], at - start_[t]);
      }
    });
    share_out<Scratch>(static_cast<int64_t>(waiting.size()), std::numeric_limits<int64_t>::max(), [&](Scratch& scratch, int64_t w) {
      Segment& x = segments_[waiting[w]];
      const int64_t m = static_cast<int64_t>(samples[w].size()) - 16;
      x.bracket = SK_PICK(bracket_of<Key>)(samples[w].data(), m, x.numel, x.k, x.attempt, scratch.room(scratch.select, scratch_keys(m)));
    });
  }

  void split_piece(Scratch& scratch, int64_t p) {
    Piece& x = pieces_[p];
    const Segment& segment = segments_[segment_of_[p]];
    Key* keys = scratch.room(scratch.keys, kBlock);
    Key* inside = scratch.room(scratch.inside, kPiece + 16);
    const bool masked = !masks_.empty();
    if (masked) scratch.where.resize(kPiece + 16);
    x.split = {};
    for (int64_t begin = x.begin; begin < x.end; begin += kBlock) {
      const int64_t end = std::min(begin + kBlock, x.end);
      keys_of(x, begin, end, keys);
      SK_PICK(split_keys<Key>)(keys, end - begin, segment.bracket, x.split, inside, masked ? scratch.where.data() : nullptr, begin - x.begin,
                               mask_of(x));
    }
    x.inside.assign(inside, inside + x.split.inside);
    if (masked) x.where.assign(scratch.where.begin(), scratch.where.begin() + x.split.inside);
  }

  // Finds the threshold, and shares out the ties: the pieces are in the order of the elements, and the first ones are served first.
  void resolve(Scratch& scratch, int64_t s) {
    Segment& segment = segments_[s];
    Split all;
    for (int64_t p = segment.first; p < segment.last; ++p) {
      const Split& x = pieces_[p].split;
      all.above += x.above, all.at_high += x.at_high, all.inside += x.inside, all.at_low += x.at_low;
    }
    segment.side = all.side(segment.k);
    if (segment.side == Side::missed) return;
    const int64_t rank = segment.k - all.above;
    if (segment.side == Side::high) segment.found = {segment.bracket.high, rank};
    if (segment.side == Side::low) segment.found = {segment.bracket.low, rank - all.at_high - all.inside};
    if (segment.side == Side::inside) {
      std::vector<Key> keys;
      keys.reserve(all.inside + 16);
      for (int64_t p = segment.first; p < segment.last; ++p) keys.insert(keys.end(), pieces_[p].inside.begin(), pieces_[p].inside.end());
      keys.resize(all.inside + 16);
      segment.found = SK_PICK(kth_largest<Key>)(keys.data(), all.inside, rank - all.at_high, scratch.room(scratch.select, scratch_keys(all.inside)));
    }
    int64_t left = segment.found.ties;
    for (int64_t p = segment.first; p < segment.last; ++p) {
      Piece& x = pieces_[p];
      x.ties = 0;
      if (left == 0) continue;
      const int64_t equal = segment.side == Side::high  ? x.split.at_high
                            : segment.side == Side::low ? x.split.at_low
                                                        : std::count(x.inside.begin(), x.inside.end(), segment.found.key);
      x.ties = std::min(left, equal);
      left -= x.ties;
    }
  }

  // Corrects the provisional mask: a few single elements, or the whole piece again where ties at the bracket's ends demand it.
  void complete(Scratch& scratch, int64_t p) {
    Piece& x = pieces_[p];
    const Segment& segment = segments_[segment_of_[p]];
    const bool high_is_threshold = segment.side == Side::high;
    const int64_t at_high_taken = high_is_threshold ? x.ties : x.split.at_high;
    const bool right = at_high_taken == (segment.bracket.keep_high ? x.split.at_high : 0) && (segment.side != Side::low || x.ties == 0);
    if (!right) {
      Key* keys = scratch.room(scratch.keys, kBlock);
      int64_t ties = x.ties;
      for (int64_t begin = x.begin; begin < x.end; begin += kBlock) {
        const int64_t end = std::min(begin + kBlock, x.end);
        keys_of(x, begin, end, keys);
        SK_PICK(emit_keys<Key>)(keys, end - begin, segment.found.key, ties, begin - x.begin, mask_of(x));
      }
    } else if (!high_is_threshold) {
      const MaskOut mask = mask_of(x);
      int64_t ties = x.ties;
      for (size_t i = 0; i < x.inside.size(); ++i) {
        const bool equal = x.inside[i] == segment.found.key;
        if (!equal && x.inside[i] < segment.found.key) continue;
        if (equal && --ties < 0) continue;
        const int64_t at = mask.begin + x.where[i];
        if (mask.kind == MaskKind::bools) static_cast<uint8_t*>(mask.data)[at] = 1;
        else static_cast<uint32_t*>(mask.data)[at >> 5] |= 1u << (at & 31);
      }
    }
  }
};

template <class Key>
Selected select_with(const std::vector<ScoreView>& scores, const std::vector<MaskOut>& masks, const std::vector<int64_t>& k,
                     const SelectOptions& options) {
  Selector<Key> selector(scores, masks, k, options);
  Selected result;
  const std::vector<Kth<Key>> found = selector.run();
  for (size_t s = 0; s < found.size(); ++s)
    result.thresholds.push_back(k[s] == 0 ? std::numeric_limits<double>::quiet_NaN() : selector.value(found[s].key));
  return result;
}

}  // namespace

ScoreView score_view(const char* op, const char* name, size_t index, const at::Tensor& scores, std::vector<at::Tensor>& kept) {
  const auto type = scores.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf || type == at::kDouble, op, ": ", name, "[", index,
                   "]: expected float32, bfloat16, float16 or float64, got ", type);
  kept.push_back(scores.contiguous());
  ScoreView view;
  view.data = kept.back().const_data_ptr();
  view.type = type;
  view.numel = scores.numel();
  return view;
}

std::vector<int64_t> count_eligible(const std::vector<ScoreView>& scores, bool global) {
  std::vector<int64_t> numel;
  for (const ScoreView& x : scores) numel.push_back(x.eligible.kind == MaskKind::none ? 0 : x.numel);
  const Pieces pieces(numel);
  std::vector<int64_t> partial(pieces.count());
  pieces.each([&](int64_t piece, int64_t t, int64_t begin, int64_t end) { partial[piece] = SK_PICK(count_mask)(scores[t].eligible, begin, end); });
  std::vector<int64_t> counts(global ? 1 : scores.size(), 0);
  for (size_t t = 0; t < scores.size(); ++t) {
    int64_t set = scores[t].eligible.kind == MaskKind::none ? scores[t].numel : 0;
    for (int64_t p = pieces.first[t]; p < pieces.first[t + 1]; ++p) set += partial[p];
    counts[global ? 0 : t] += scores[t].invert ? scores[t].numel - set : set;
  }
  return counts;
}

Selected select_elements(const std::vector<ScoreView>& scores, const std::vector<MaskOut>& masks, const std::vector<int64_t>& k,
                         const SelectOptions& options) {
  std::vector<size_t> narrow, wide;
  for (size_t i = 0; i < scores.size(); ++i) (scores[i].type == at::kDouble ? wide : narrow).push_back(i);
  if (wide.empty()) return select_with<uint32_t>(scores, masks, k, options);
  if (narrow.empty()) return select_with<uint64_t>(scores, masks, k, options);
  TORCH_INTERNAL_ASSERT(!options.global, "a global selection compares keys of one width");
  Selected result{std::vector<double>(scores.size())};
  for (const auto& group : {narrow, wide}) {
    std::vector<ScoreView> some;
    std::vector<MaskOut> outputs;
    std::vector<int64_t> counts;
    for (const size_t i : group) {
      some.push_back(scores[i]);
      if (!masks.empty()) outputs.push_back(masks[i]);
      counts.push_back(k[i]);
    }
    const Selected part = select_elements(some, outputs, counts, options);
    for (size_t j = 0; j < group.size(); ++j) result.thresholds[group[j]] = part.thresholds[j];
  }
  return result;
}

}  // namespace sparsekern
