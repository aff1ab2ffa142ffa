// Malformed and sound patterns, thrown at the torch-free parts of the CSR kernels: the checks must find exactly what is wrong, and
// what passes them must be safe to compute with. Built with the address and undefined-behaviour sanitizers; every array is a heap
// block of its exact size, so that one element too far is seen. csr_fuzz <how many malformed> <seed>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <vector>

#include "cpu/csr_edit.h"
#include "cpu/csr_faults.h"
#include "cpu/csr_sddmm_sweep.h"
#include "cpu/isa.h"

namespace sparsekern::sddmm {
#include "cpu/simd_scalar.h"
#include "cpu/simd_common.h"
#include "cpu/tile_scalar.h"
#include "cpu/tile_common.h"
#include "cpu/csr_sddmm.h"
}  // namespace sparsekern::sddmm
namespace sparsekern::spmm {
#include "cpu/simd_scalar.h"
#include "cpu/simd_common.h"
#include "cpu/tile_scalar.h"
#include "cpu/tile_common.h"
#include "cpu/csr_spmm.h"
}  // namespace sparsekern::spmm

using namespace sparsekern;

namespace {

#define CHECK(condition)                                                                           \
  if (!(condition)) {                                                                              \
    std::printf("line %d, input %lld: %s\n", __LINE__, static_cast<long long>(input), #condition); \
    std::exit(1);                                                                                  \
  }

int64_t input = 0;

uint64_t state;
uint64_t random_bits() {  // splitmix64
  uint64_t z = (state += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}
int64_t below(int64_t limit) { return static_cast<int64_t>(random_bits() % static_cast<uint64_t>(limit)); }
int64_t sum(int64_t a, int64_t b) { return static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b)); }  // wraps
float number() { return static_cast<float>(below(2001) - 1000) / 500; }

// A heap block of exactly `count` elements.
template <class T>
struct Block {
  std::unique_ptr<T[]> data;
  int64_t count;
  explicit Block(int64_t n) : data(new T[n]()), count(n) {}
  explicit Block(const std::vector<T>& from) : Block(static_cast<int64_t>(from.size())) { std::copy(from.begin(), from.end(), data.get()); }
  T& operator[](int64_t i) { return data[i]; }
  T* get() const { return data.get(); }
};

struct Pattern {
  std::vector<int64_t> crow{0};
  std::vector<int32_t> col;
  int64_t rows, cols;
};

Pattern sound_pattern() {
  Pattern p;
  p.rows = below(9), p.cols = below(40);
  const int64_t density = below(101);
  for (int64_t r = 0; r < p.rows; ++r) {
    for (int64_t c = 0; c < p.cols; ++c)
      if (below(100) < density) p.col.push_back(static_cast<int32_t>(c));
    p.crow.push_back(static_cast<int64_t>(p.col.size()));
  }
  return p;
}

constexpr int32_t kWildColumns[] = {-1, std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max(), 1 << 20};
constexpr int64_t kWildPointers[] = {-1, std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max(), int64_t{1} << 31, 1 << 20};
constexpr int64_t kWildSizes[] = {-1, std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()};

void change_by_two(int64_t& pointer) { pointer = sum(pointer, below(5) - 2); }

void break_once(Pattern& p) {
  const int64_t nnz = static_cast<int64_t>(p.col.size()), pointers = static_cast<int64_t>(p.crow.size());
  switch (below(10)) {
    case 0:
      if (nnz) p.col[below(nnz)] = kWildColumns[below(4)];
      return;
    case 1:
      if (nnz) p.col[below(nnz)] = static_cast<int32_t>(sum(p.cols, below(3)));
      return;
    case 2:
      if (nnz) std::swap(p.col[below(nnz)], p.col[below(nnz)]);
      return;  // unsorted
    case 3:
      if (nnz) p.col[below(nnz)] = p.col[below(nnz)];
      return;  // twice
    case 4:
      if (pointers) p.crow[below(pointers)] = kWildPointers[below(5)];
      return;
    case 5:
      if (pointers) change_by_two(p.crow[below(pointers)]);
      return;  // falls, or ends wrong
    case 6:
      if (nnz) p.col.resize(below(nnz));
      return;  // lengths that disagree
    case 7:
      p.crow.resize(below(pointers + 1));
      return;
    case 8:
      p.rows = below(4) ? sum(p.rows, below(5) - 2) : kWildSizes[below(3)];
      return;
    default:
      p.cols = below(4) ? below(std::clamp<int64_t>(p.cols, 0, 40) + 2) : kWildSizes[below(2)];
      return;
  }
}

bool operator==(const CsrFinding& a, const CsrFinding& b) { return a.fault == b.fault && a.row == b.row && a.position == b.position; }

// The definition, without speed.
CsrFinding pointers_by_definition(const Pattern& p) {
  const int64_t nnz = static_cast<int64_t>(p.col.size());
  if (p.rows < 0 || p.rows >= (int64_t{1} << 40) || static_cast<int64_t>(p.crow.size()) != p.rows + 1) return {CsrFault::pointer_count, -1, -1};
  if (p.crow[0] != 0) return {CsrFault::pointer_start, 0, 0};
  for (int64_t r = 0; r < p.rows; ++r)
    if (p.crow[r + 1] < p.crow[r]) return {CsrFault::pointer_falls, r, r + 1};
  if (p.crow.back() != nnz) return {CsrFault::pointer_end, p.rows - 1, p.rows};
  return {};
}
CsrFinding entries_by_definition(const Pattern& p, const std::vector<bool>& finite) {
  int64_t row = 0;
  for (int64_t e = 0; e < static_cast<int64_t>(p.col.size()); ++e) {
    while (p.crow[row + 1] <= e) ++row;
    const bool follows = e > p.crow[row];
    if (p.col[e] < 0 || p.col[e] >= p.cols) return {CsrFault::column_range, row, e};
    if (follows && p.col[e] == p.col[e - 1]) return {CsrFault::column_twice, row, e};
    if (follows && p.col[e] < p.col[e - 1]) return {CsrFault::column_order, row, e};
    if (!finite[e]) return {CsrFault::value_not_finite, row, e};
  }
  return {};
}

template <class T>
T rounded(float x) {
  return static_cast<T>(x);
}

// ---- what passes the checks is computed with ----

template <class T>
void try_sddmm(const Pattern& p, const Block<int64_t>& crow, const Block<int32_t>& col) {
  using P = PanelOf<T>;
  const int64_t nnz = col.count, length = below(8) ? 1 + below(40) : 129 + below(20);
  const bool by_columns[2] = {below(2) == 1, below(2) == 1};
  Block<T> a(p.rows * length), b(p.cols * length);
  for (int64_t i = 0; i < a.count; ++i) a[i] = rounded<T>(number());
  for (int64_t i = 0; i < b.count; ++i) b[i] = rounded<T>(number());
  const auto dense = [&](const Block<T>& m, int64_t height, bool columns) {
    return columns ? Dense<const T>{m.get(), height, length, 1, std::max<int64_t>(height, 1)} : Dense<const T>{m.get(), height, length, length, 1};
  };
  const Dense<const T> da = dense(a, p.rows, by_columns[0]), db = dense(b, p.cols, by_columns[1]);
  Block<ArithOf<P>> sums(nnz);
  Block<int64_t> next(p.rows);
  const int64_t block = 1 + below(40);
  for (const SddmmPanel& panel : sddmm_panels(length, kLeastVectors<P>, kMostVectors<P>)) {
    const int64_t row = panel_row<P>(panel.vectors);
    Block<P> a_panel(p.rows * row), b_panel(p.cols * row);
    sddmm::sddmm_pack<T>(da, panel, a_panel.get(), 0, p.rows);
    sddmm::sddmm_pack<T>(db, panel, b_panel.get(), 0, p.cols);
    const SddmmSweep<P> sweep{crow.get(), col.get(), p.cols, block, a_panel.get(), b_panel.get(), row, row, sums.get(), next.get(), panel.begin == 0};
    const int64_t middle = p.rows ? below(p.rows + 1) : 0;
    sddmm::sddmm_sweep<P>(sweep, panel.vectors, 0, middle);
    sddmm::sddmm_sweep<P>(sweep, panel.vectors, middle, p.rows);
  }
  for (int64_t r = 0; r < p.rows; ++r) {
    for (int64_t e = p.crow[r]; e < p.crow[r + 1]; ++e) {
      double dot = 0;
      for (int64_t n = 0; n < length; ++n)
        dot +=
            static_cast<double>(static_cast<float>(da.data[r * da.row + n * da.col])) * static_cast<float>(db.data[p.col[e] * db.row + n * db.col]);
      CHECK(std::abs(dot - static_cast<double>(sums[e])) < 1e-3);
    }
  }
}

template <class T>
void try_spmm(const Pattern& p, const Block<int64_t>& crow, const Block<int32_t>& col) {
  const int64_t width = 1 + below(32);
  Block<T> b(p.cols * width), out(p.rows * width);
  Block<Arith<T>> val(col.count);
  for (int64_t i = 0; i < b.count; ++i) b[i] = rounded<T>(number());
  for (int64_t i = 0; i < val.count; ++i) val[i] = number();
  const Spmm<T> s{crow.get(), col.get(), val.get(), nullptr, {b.get(), p.cols, width, width, 1}, {out.get(), p.rows, width, width, 1}};
  const int vectors = std::is_same_v<T, double> ? 1 : 2;
  Block<PanelOf<T>> panel(p.cols * panel_row<PanelOf<T>>(vectors));
  for (int64_t j = 0; j < width; j += 16 * vectors) spmm::spmm_piece<T>(s, vectors, j, 0, p.rows, panel.get());
  for (int64_t r = 0; r < p.rows; ++r) {
    for (int64_t j = 0; j < width; ++j) {
      double dot = 0;
      for (int64_t e = p.crow[r]; e < p.crow[r + 1]; ++e) dot += static_cast<double>(val[e]) * static_cast<float>(b[p.col[e] * width + j]);
      CHECK(std::abs(dot - static_cast<double>(static_cast<float>(out[r * width + j]))) < 1e-3 + 0.01 * std::abs(dot) * (sizeof(T) == 2));
    }
  }
}

void try_replace(const Pattern& p, const Block<int64_t>& crow, const Block<int32_t>& col, bool sorted) {
  const int64_t nnz = col.count, candidates = below(30);
  Block<uint8_t> drop(nnz), take(candidates);
  Block<int32_t> rows(candidates), cols(candidates);
  for (int64_t i = 0; i < nnz; ++i) drop[i] = static_cast<uint8_t>(below(3) == 0 ? 1 + below(255) : 0);
  for (int64_t i = 0; i < candidates; ++i) {
    take[i] = static_cast<uint8_t>(below(2));
    rows[i] = below(20) ? static_cast<int32_t>(below(p.rows + 1)) - (below(20) == 0) : kWildColumns[below(4)];
    cols[i] = below(20) ? static_cast<int32_t>(below(p.cols + 1)) : kWildColumns[below(4)];
  }
  const CsrChange change{crow.get(), col.get(), drop.get(), p.rows, nnz, rows.get(), cols.get(), take.get(), candidates};
  std::vector<CsrChange::Taken> taken;
  const int64_t outside = change.collect(taken);
  int64_t first_outside_row = -1, wanted = 0;
  for (int64_t i = 0; i < candidates; ++i) {
    if (!take[i] || rows[i] < 0 || cols[i] < 0) continue;
    ++wanted;
    if (rows[i] >= p.rows && first_outside_row < 0) first_outside_row = i;
  }
  CHECK(outside == first_outside_row && static_cast<int64_t>(taken.size()) == wanted);
  if (outside >= 0) return;
  Block<int64_t> pointers(p.rows + 1);
  const int64_t middle = below(p.rows + 1);
  change.count(taken, pointers.get(), 0, middle);
  change.count(taken, pointers.get(), middle, p.rows);
  for (int64_t r = 0; r < p.rows; ++r) pointers[r + 1] += pointers[r];
  const int64_t after = pointers[p.rows];
  Block<int32_t> out_col(after);
  Block<int64_t> source(after);
  const int64_t low = change.merge(taken, out_col.get(), source.get(), 0, middle);
  const int64_t high = change.merge(taken, out_col.get() + pointers[middle], source.get() + pointers[middle], middle, p.rows);
  Block<uint16_t> from(nnz), grown(candidates), to(after);
  for (int64_t i = 0; i < nnz; ++i) from[i] = static_cast<uint16_t>(col.get()[i]);
  for (int64_t i = 0; i < candidates; ++i) grown[i] = static_cast<uint16_t>(cols[i]);
  take_from(source.get(), after, from.get(), grown.get(), to.get());
  for (int64_t i = 0; i < after; ++i) CHECK(to[i] == static_cast<uint16_t>(out_col[i]));  // every entry came with its own column
  if (!sorted) return;
  const CsrFinding found = entry_fault(pointers.get(), out_col.get(), int64_t{1} << 31, 0, p.rows, [](int64_t) { return true; });
  CHECK((found.fault == CsrFault::none) == (low < 0 && high < 0));
  CHECK(found.fault == CsrFault::none || found.fault == CsrFault::column_twice);
}

void try_mask() {
  const int64_t rows = below(6), cols = below(30);
  Block<uint8_t> mask(rows * cols);
  Block<uint16_t> values(rows * cols);
  for (int64_t i = 0; i < mask.count; ++i) mask[i] = static_cast<uint8_t>(below(3) ? 0 : below(256)), values[i] = static_cast<uint16_t>(i);
  std::vector<int64_t> crow{0}, want;
  for (int64_t i = 0; i < mask.count; ++i)
    if (mask[i]) want.push_back(i);
  for (int64_t r = 0; r < rows; ++r) crow.push_back(crow.back() + count_set(mask.get(), r * cols, (r + 1) * cols));
  CHECK(crow.back() == static_cast<int64_t>(want.size()));
  Block<int32_t> col(crow.back());
  Block<uint16_t> val(crow.back());
  rows_from_mask(mask.get(), cols, crow.data(), col.get(), values.get(), val.get(), 0, rows);
  for (int64_t e = 0; e < col.count; ++e) CHECK(val[e] == want[e] && col[e] == want[e] % cols);
}

}  // namespace

int main(int, char** argv) {
  const int64_t total = std::atoll(argv[1]);
  state = static_cast<uint64_t>(std::atoll(argv[2]));
  int64_t broken = 0, unsafe = 0;
  for (; broken < total; ++input) {
    Pattern p = sound_pattern();
    for (int64_t k = below(3); k > 0; --k) break_once(p);
    const Block<int64_t> crow(p.crow);
    const Block<int32_t> col(p.col);
    const int64_t nnz = col.count;
    const CsrFinding pointers = pointer_fault(crow.get(), crow.count, p.rows, nnz);
    CHECK(pointers == pointers_by_definition(p));
    std::vector<int32_t> narrow(p.crow.begin(), p.crow.end());
    Pattern p32 = p;
    p32.crow.assign(narrow.begin(), narrow.end());
    CHECK(pointer_fault(narrow.data(), crow.count, p.rows, nnz) == pointers_by_definition(p32));
    if (pointers.fault != CsrFault::none) {
      ++broken, ++unsafe;
      continue;
    }
    std::vector<bool> finite(nnz);
    for (int64_t e = 0; e < nnz; ++e) finite[e] = below(50) != 0;
    CHECK(entry_fault(crow.get(), col.get(), p.cols, 0, p.rows, [&](int64_t e) { return static_cast<bool>(finite[e]); }) ==
          entries_by_definition(p, finite));
    const CsrFinding entries = entries_by_definition(p, std::vector<bool>(nnz, true));
    broken += entries.fault != CsrFault::none;
    int64_t outside = 0;
    while (outside < nnz && p.col[outside] >= 0 && p.col[outside] < p.cols) ++outside;
    CHECK(first_outside(col.get(), 0, nnz, p.cols) == outside);
    if (outside < nnz || p.cols < 0) {
      ++unsafe;
      continue;
    }
    try_replace(p, crow, col, entries.fault == CsrFault::none);
    if (input % 8 == 0) try_sddmm<float>(p, crow, col);
    if (input % 8 == 2) try_sddmm<c10::BFloat16>(p, crow, col), try_spmm<c10::BFloat16>(p, crow, col);
    if (input % 8 == 4) try_sddmm<double>(p, crow, col), try_spmm<double>(p, crow, col);
    if (input % 8 == 6) try_spmm<float>(p, crow, col);
    if (input % 8 == 7) try_mask();
  }
  std::printf("%lld inputs, %lld malformed, %lld refused before any read by them: ok\n", static_cast<long long>(input),
              static_cast<long long>(broken), static_cast<long long>(unsafe));
}
