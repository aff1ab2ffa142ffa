// Weights as a cumulative table of exact integers: no order of summation, so the same table on every backend.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

namespace sparsekern {

constexpr double kWeightUnit = 274877906944.0;  // 2^38, what the largest weight becomes

// sums[i]: of items 0..i. guide[place >> shift]: the first item whose sum exceeds the lowest place with these high bits.
struct SampleTable {
  const uint64_t* sums = nullptr;
  const uint32_t* guide = nullptr;
  int shift = 0;
  uint64_t total = 0;
};

// Weights that are negative, NaN or 0 are never drawn; if there are no others, all are equal.
class OwnedSampleTable {
 public:
  OwnedSampleTable(const float* weights, int64_t n) : sums_(n) {
    float most = 0;
    for (int64_t i = 0; i < n; ++i) most = weights[i] > most ? weights[i] : most;
    uint64_t total = 0;
    for (int64_t i = 0; i < n; ++i) sums_[i] = total += units(weights[i], most);
    const int bits = bit_length(total - 1), wanted = bit_length(n - 1) + 2;  // two to four entries an item
    view.shift = bits > wanted ? bits - wanted : 0;
    guide_.resize(((total - 1) >> view.shift) + 1);
    uint32_t item = 0;
    for (uint64_t high = 0; high < guide_.size(); ++high) {
      while (sums_[item] <= high << view.shift) ++item;
      guide_[high] = item;
    }
    view.sums = sums_.data(), view.guide = guide_.data(), view.total = total;
  }
  SampleTable view;

 private:
  static int bit_length(uint64_t x) { return x ? 64 - __builtin_clzll(x) : 0; }
  static uint64_t units(float weight, float most) {
    if (!(most > 0)) return 1;
    if (!(weight > 0)) return 0;
    const double scaled = std::nearbyint(static_cast<double>(weight) / static_cast<double>(most) * kWeightUnit);
    return scaled < 1 ? 1 : static_cast<uint64_t>(scaled);
  }
  std::vector<uint64_t> sums_;
  std::vector<uint32_t> guide_;
};

}  // namespace sparsekern
