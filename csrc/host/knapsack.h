// Which prefix of every group to take, so that the values sum to the most within a capacity: one choice per group, exactly.
//   best_l[c] = max over j with W_l(j) <= c of best_{l+1}[c - W_l(j)] + V_l(j),   W, V: cumulative cost and value
// Groups are worked from the last to the first, so that the way back starts at the first group and can prefer its longer
// prefix. Cells: capacity times the number of bundles, as many as one bundle at a time; unlike that, it finds the optima
// that take a poor bundle for the sake of a good one behind it. Free of torch and Python.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace sparsekern {

// Choices of one group for every capacity, in the fewest bits of 1, 2, 4, 8, 16 that hold them: at most one bit per bundle
// and capacity, whatever the groups are.
class ChoiceRow {
 public:
  ChoiceRow(const std::vector<uint16_t>& choices, size_t most) {
    while (most >> bits_) bits_ *= 2;
    words_.assign((choices.size() * bits_ + 63) / 64, 0);
    for (size_t c = 0; c < choices.size(); ++c) words_[c * bits_ / 64] |= uint64_t(choices[c]) << (c * bits_ % 64);
  }
  size_t at(size_t c) const { return words_[c * bits_ / 64] >> (c * bits_ % 64) & ((uint64_t(1) << bits_) - 1); }

 private:
  size_t bits_ = 1;
  std::vector<uint64_t> words_;
};

struct Bundles {
  std::vector<int64_t> value, cost;  // of the first j bundles: size + 1 entries
};

inline std::vector<Bundles> cumulate(const std::vector<int64_t>& values, const std::vector<int64_t>& costs, const std::vector<int64_t>& sizes) {
  constexpr int64_t limit = int64_t(1) << 61;
  std::vector<Bundles> groups;
  size_t at = 0;
  int64_t magnitude = 0;
  for (const int64_t size : sizes) {
    Bundles group = {{0}, {0}};
    for (int64_t j = 0; j < size; ++j, ++at) {
      for (const int64_t x : {values[at], costs[at]}) {
        if (x > limit || x < -limit || (magnitude += x < 0 ? -x : x) > limit)
          throw std::invalid_argument("knapsack: values and costs: expected sums below 2^61, got larger ones at bundle " + std::to_string(at));
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
  constexpr int64_t none = std::numeric_limits<int64_t>::min() / 2;  // cannot be had
  const std::vector<Bundles> groups = cumulate(values, costs, sizes);
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
  std::vector<uint16_t> choices(cells);
  std::vector<ChoiceRow> rows;
  for (size_t l = groups.size(); l-- > 0;) {
    std::fill(next.begin(), next.end(), none);
    std::fill(choices.begin(), choices.end(), uint16_t(0));
    for (size_t j = from[l]; j < groups[l].cost.size(); ++j) {
      const int64_t cost = groups[l].cost[j], value = groups[l].value[j];
      if (cost > capacity) continue;
      const int64_t* before = best.data();
      int64_t* now = next.data() + cost;
      uint16_t* choice = choices.data() + cost;
      for (size_t c = 0; c < cells - static_cast<size_t>(cost); ++c) {  // as selections, so that the compiler vectorises it
        const int64_t total = before[c] + value;
        const bool better = total >= now[c] && before[c] != none;  // of equals the longer prefix
        now[c] = better ? total : now[c];
        choice[c] = better ? static_cast<uint16_t>(j) : choice[c];
      }
    }
    for (int64_t& x : next) x = x < none / 2 ? none : x;
    best.swap(next);
    rows.emplace_back(choices, groups[l].cost.size() - 1);
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
