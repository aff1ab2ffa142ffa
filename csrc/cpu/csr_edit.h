// Making a pattern from a mask, and dropping and inserting nonzeros: torch-free, one range of rows at a time.
// Nothing here depends on how rows are shared out. Bytes: from_mask reads the mask twice; replace reads and writes every array once.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace sparsekern {

// The top bit of each byte of the next eight bools that is not zero; bools behind the end count as zero.
inline uint64_t nonzero_bytes(const uint8_t* at, int64_t count) {
  constexpr uint64_t kLow = 0x7f7f7f7f7f7f7f7f;
  uint64_t word = 0;
  if (count >= 8) std::memcpy(&word, at, 8);
  else std::memcpy(&word, at, static_cast<size_t>(count));
  return (((word & kLow) + kLow) | word) & ~kLow;
}

inline int64_t count_set(const uint8_t* bools, int64_t begin, int64_t end) {
  int64_t sum = 0;
  for (int64_t i = begin; i < end; i += 8) sum += static_cast<int64_t>(((nonzero_bytes(bools + i, end - i) >> 7) * 0x0101010101010101u) >> 56);
  return sum;
}

template <class Fn>
void for_each_set(const uint8_t* bools, int64_t begin, int64_t end, const Fn& fn) {
  for (int64_t i = begin; i < end; i += 8)
    for (uint64_t set = nonzero_bytes(bools + i, end - i); set; set &= set - 1) fn(i + (__builtin_ctzll(set) >> 3));
}

// Rows [begin, end) of a row-major mask [rows, cols]: the columns that are on, and the values there (of any type of T's size).
template <class T>
void rows_from_mask(const uint8_t* mask, int64_t cols, const int64_t* crow, int32_t* col, const T* values, T* val, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    int64_t e = crow[r];
    for_each_set(mask + r * cols, 0, cols, [&](int64_t c) {
      col[e] = static_cast<int32_t>(c);
      if (values != nullptr) val[e] = values[r * cols + c];
      ++e;
    });
  }
}

// A pattern that loses the nonzeros with `drop` and gets the candidates with `take`.
struct CsrChange {
  const int64_t* crow;
  const int32_t* col;
  const uint8_t* drop;
  int64_t rows, nnz;
  const int32_t *new_rows, *new_cols;
  const uint8_t* take;
  int64_t candidates;

  struct Taken {
    int64_t key, from;  // row and column in one number; which candidate
    bool operator<(const Taken& other) const { return key < other.key; }
  };
  static int64_t key_of(int64_t row, int64_t col) { return (row << 32) | col; }
  static int64_t row_of(int64_t key) { return key >> 32; }
  static int64_t col_of(int64_t key) { return key & 0xffffffff; }

  // Candidates that are taken, sorted by row and column; -1 when all is well, else the first one whose row does not exist.
  int64_t collect(std::vector<Taken>& taken) const {
    int64_t outside = -1;
    for_each_set(take, 0, candidates, [&](int64_t i) {
      if (new_rows[i] < 0 || new_cols[i] < 0) return;
      if (new_rows[i] >= rows && outside < 0) outside = i;
      taken.push_back({key_of(new_rows[i], new_cols[i]), i});
    });
    if (outside < 0 && !std::is_sorted(taken.begin(), taken.end())) std::sort(taken.begin(), taken.end());
    return outside;
  }

  // counts[r + 1] = how many nonzeros row r will have, rows [begin, end).
  void count(const std::vector<Taken>& taken, int64_t* counts, int64_t begin, int64_t end) const {
    auto next = first_of(taken, begin);
    for (int64_t r = begin; r < end; ++r) {
      int64_t here = crow[r + 1] - crow[r] - count_set(drop, crow[r], crow[r + 1]);
      for (; next != taken.end() && row_of(next->key) == r; ++next) ++here;
      counts[r + 1] = here;
    }
  }

  // The new columns of rows [begin, end), from position crow[begin] of the new pattern on, and where each entry comes from: a
  // nonzero, or ~candidate. The key of a candidate that was taken twice or is active, or -1.
  int64_t merge(const std::vector<Taken>& taken, int32_t* out_col, int64_t* source, int64_t begin, int64_t end) const {
    int64_t twice = -1, at = 0;
    auto next = first_of(taken, begin);
    const auto put = [&](int64_t key, int64_t from) {
      out_col[at] = static_cast<int32_t>(col_of(key));
      source[at++] = from;
    };
    for (int64_t r = begin; r < end; ++r) {
      int64_t before = -1;  // the candidate put last
      const auto put_next = [&] {
        if (next->key == before && twice < 0) twice = before;
        before = next->key;
        put(next->key, ~next->from);
        ++next;
      };
      for (int64_t e = crow[r]; e < crow[r + 1]; ++e) {
        if (drop[e]) continue;
        const int64_t key = key_of(r, col[e]);
        while (next != taken.end() && next->key <= key) {
          if (next->key == key && twice < 0) twice = key;
          put_next();
        }
        put(key, e);
      }
      while (next != taken.end() && row_of(next->key) == r) put_next();
    }
    return twice;
  }

 private:
  static std::vector<Taken>::const_iterator first_of(const std::vector<Taken>& taken, int64_t row) {
    return std::lower_bound(taken.begin(), taken.end(), Taken{key_of(row, 0), 0});
  }
};

// to[i] = from[source[i]], or inserted[~source[i]] where that is a candidate (0 without `inserted`).
template <class T>
void take_from(const int64_t* source, int64_t count, const T* from, const T* inserted, T* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = source[i] >= 0 ? from[source[i]] : inserted != nullptr ? inserted[~source[i]] : T(0);
}

}  // namespace sparsekern
