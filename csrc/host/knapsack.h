// Which prefix of every group to take, so that the values sum to the most within a capacity: one choice per group, exactly.
//   best_l[c] = max over j with W_l(j) <= c of best_{l+1}[c - W_l(j)] + V_l(j),   W, V: cumulative cost and value
// Groups are worked from the last to the first, so that the way back starts at the first group and can prefer its longer
// prefix. Cells: capacity times the number of bundles, as many as one bundle at a time; unlike that, it finds the optima
// that take a poor bundle for the sake of a good one behind it. Free of torch and Python.
#pragma once
#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace sparsekern {

// Compiled for what the CPU has; the loop is bound by how wide a 64-bit maximum is.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SK_CLONES __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define SK_CLONES
#endif

// now[c] = max(now[c], before[c] + gain), cell by cell.
SK_CLONES inline void take_better(int64_t* now, const int64_t* before, size_t cells, int64_t gain) {
  for (size_t c = 0; c < cells; ++c) {
    const int64_t total = before[c] + gain;
    now[c] = total > now[c] ? total : now[c];
  }
}

// Choices of one group for every capacity, in the fewest bits of 1, 2, 4, 8, 16 that hold them: at most one bit per bundle
// and capacity, whatever the groups are. They are taken off the low `shift` bits of the cells.
class ChoiceRow {
 public:
  ChoiceRow(std::vector<int64_t>& cells, size_t most, int shift) {
    while (most >> bits_) bits_ *= 2;
    const int64_t low = (int64_t(1) << shift) - 1;
    const size_t per_word = 64 / bits_;
    words_.resize((cells.size() + per_word - 1) / per_word);
    for (size_t w = 0; w < words_.size(); ++w) {
      uint64_t word = 0;
      const size_t begin = w * per_word, count = std::min(per_word, cells.size() - begin);
      for (size_t k = 0; k < count; ++k) {
        word |= uint64_t(cells[begin + k] & low) << k * bits_;
        cells[begin + k] &= ~low;
      }
      words_[w] = word;
    }
  }
  size_t at(size_t c) const { return words_[c * bits_ / 64] >> (c * bits_ % 64) & ((uint64_t(1) << bits_) - 1); }

 private:
  size_t bits_ = 1;
  std::vector<uint64_t> words_;
};

struct Bundles {
  std::vector<int64_t> value, cost;  // of the first j bundles: size + 1 entries
};

// Values and costs may sum to 2^limit_bits.
inline std::vector<Bundles> cumulate(const std::vector<int64_t>& values, const std::vector<int64_t>& costs, const std::vector<int64_t>& sizes,
                                     int limit_bits) {
  const int64_t limit = int64_t(1) << limit_bits;
  std::vector<Bundles> groups;
  size_t at = 0;
  int64_t magnitude = 0;
  for (const int64_t size : sizes) {
    Bundles group = {{0}, {0}};
    for (int64_t j = 0; j < size; ++j, ++at) {
      for (const int64_t x : {values[at], costs[at]}) {
        if (x > limit || x < -limit || (magnitude += x < 0 ? -x : x) > limit)
          throw std::invalid_argument("knapsack: values and costs: expected sums below 2^" + std::to_string(limit_bits) +
                                      ", got larger ones at bundle " + std::to_string(at) + "; count them in coarser units");
      }
      group.value.push_back(group.value.back() + values[at]);
      group.cost.push_back(group.cost.back() + costs[at]);
      if (group.cost.back() < 0)
        throw std::invalid_argument("knapsack: costs: expected that no prefix of a group costs less than 0, got " +
                                    std::to_string(group.cost.back()) + " for the first " + std::to_string(j + 1) + " bundles of group " +
                                    std::to_string(groups.size()));
    }
    groups.push_back(std::move(group));
  }
  return groups;
}

// Bundles taken per group. Invariant: sizes sum to the number of values and of costs, and each fits 16 bits.
inline std::vector<int64_t> knapsack(const std::vector<int64_t>& values, const std::vector<int64_t>& costs, const std::vector<int64_t>& sizes,
                                     int64_t capacity, int64_t min_take) {
  // A cell holds a value above the choice that gave it: of equal values the longer prefix is the larger number.
  int shift = 1;
  for (const int64_t size : sizes)
    while (size >> shift) ++shift;
  constexpr int64_t none = -(int64_t(1) << 62);  // cannot be had; stays below every value whatever is added
  const std::vector<Bundles> groups = cumulate(values, costs, sizes, 60 - shift);
  int64_t least = 0;
  std::vector<int64_t> from;
  for (const Bundles& group : groups) {
    from.push_back(std::min<int64_t>(min_take, group.cost.size() - 1));
    least += *std::min_element(group.cost.begin() + from.back(), group.cost.end());
  }
  if (capacity < least)
    throw std::invalid_argument("knapsack: capacity: expected at least " + std::to_string(least) + ", the least that taking " +
                                std::to_string(min_take) + " bundles of each group costs, got " + std::to_string(capacity));
  const size_t cells = static_cast<size_t>(capacity) + 1;
  std::vector<int64_t> best(cells, 0), next(cells);
  std::vector<ChoiceRow> rows;
  for (size_t l = groups.size(); l-- > 0;) {
    std::fill(next.begin(), next.end(), none);
    for (size_t j = from[l]; j < groups[l].cost.size(); ++j) {
      const int64_t cost = groups[l].cost[j];
      if (cost <= capacity) take_better(next.data() + cost, best.data(), cells - cost, groups[l].value[j] * (int64_t(1) << shift) + int64_t(j));
    }
    rows.emplace_back(next, groups[l].cost.size() - 1, shift);
    for (int64_t& x : next) x = x < none / 2 ? none : x;
    best.swap(next);
  }
  // The least capacity with the best value: everything that reaches this value there costs exactly that.
  size_t left = static_cast<size_t>(std::lower_bound(best.begin(), best.end(), best.back()) - best.begin());
  std::vector<int64_t> taken;
  for (size_t l = 0; l < groups.size(); ++l) {
    taken.push_back(static_cast<int64_t>(rows[groups.size() - 1 - l].at(left)));
    left -= static_cast<size_t>(groups[l].cost[taken.back()]);
  }
  return taken;
}

}  // namespace sparsekern
