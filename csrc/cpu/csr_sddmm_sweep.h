// What one sweep of the sampled product is told, the same for every instruction set.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/csr_product.h"

namespace sparsekern {

// A panel takes at most this many vectors of a row: what fits in registers beside the sums of sixteen dots. fp64 is for tests.
template <class P>
constexpr int kMostVectors = std::is_same_v<P, double> ? 1 : 8;
template <class P>
constexpr int kLeastVectors = std::is_same_v<P, uint32_t> ? 2 : 1;

// `vectors` * 16 columns of both operands from column `begin` on; 1, 2, 4 or 8 vectors, the last of them filled up with zeros.
struct SddmmPanel {
  int64_t begin;
  int vectors;
};

inline std::vector<SddmmPanel> sddmm_panels(int64_t length, int least, int most) {
  std::vector<SddmmPanel> panels;
  for (int64_t begin = 0; begin < length;) {
    int vectors = least;
    while (vectors < most && begin + 16 * vectors < length) vectors *= 2;
    panels.push_back({begin, vectors});
    begin += 16 * vectors;
  }
  return panels;
}

// sums[e] (+)= the dot of panel row row(e) of a with panel row col[e] of b. Columns of the pattern are taken in blocks whose
// rows of b stay in cache; a block ends a row's turn, no more, so unsorted columns only cost speed.
template <class P>
struct SddmmSweep {
  const int64_t* crow;
  const int32_t* col;
  int64_t cols, block;
  const P* a;
  const P* b;
  int64_t a_row, b_row;  // elements of P from one row to the next
  ArithOf<P>* sums;
  int64_t* next;  // [rows], working memory
  bool first;
};

}  // namespace sparsekern
