// Random patterns for the standalone programs of the ops on them.
#pragma once
#include <set>
#include <string>
#include <utility>

#include "check.h"
#include "cuda/csr_rows.h"

using sparsekern::cuda::CsrView;
using Place = std::pair<int64_t, int64_t>;

struct Pattern {
  int64_t rows, cols;
  bool wide;
  std::vector<int64_t> crow{0};
  std::vector<int32_t> narrow, col;
  std::set<Place> active;
  Pattern(int64_t rows, int64_t cols, double density, bool wide) : rows(rows), cols(cols), wide(wide) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c)
        if (uniform() * 0.5 + 0.5 < density) col.push_back(static_cast<int32_t>(c)), active.insert({r, c});
      crow.push_back(static_cast<int64_t>(col.size()));
    }
    narrow.assign(crow.begin(), crow.end());
  }
  int64_t nnz() const { return static_cast<int64_t>(col.size()); }
};

// The same on the device, its arrays misaligned by `shift` elements.
struct DevicePattern {
  Device<int64_t> crow;
  Device<int32_t> narrow, col;
  CsrView view;
  DevicePattern(const Pattern& p, size_t shift) : crow(p.crow, shift), narrow(p.narrow, shift), col(p.col, shift) {
    view = {p.wide ? static_cast<const void*>(crow.get()) : narrow.get(), col.get(), p.rows, p.cols, p.nnz(), p.wide};
  }
};

inline int cases = 0;

template <class T>
void expect(const std::string& what, const std::vector<T>& got, const std::vector<T>& want) {
  ++cases;
  if (got.size() != want.size()) std::printf("%s: %zu elements, expected %zu\n", what.c_str(), got.size(), want.size()), std::exit(1);
  for (size_t i = 0; i < want.size(); ++i)
    if (!(got[i] == want[i])) {
      std::printf("%s: element %zu of %zu is %lld, expected %lld\n", what.c_str(), i, want.size(), static_cast<long long>(got[i]),
                  static_cast<long long>(want[i]));
      std::exit(1);
    }
}

inline Device<unsigned char> workspace_of(size_t bytes) {  // exactly as large as asked for, between guards
  static_assert(Device<unsigned char>::guard == 64);
  return Device<unsigned char>(std::vector<unsigned char>(bytes, 0xa5), 192);  // aligned to 256 bytes with the guard
}
