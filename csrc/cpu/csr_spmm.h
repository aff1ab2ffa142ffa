// One row of the product at a time, a panel of 32 columns wide (64 in bfloat16): out[r] = sum over e of val[e] * panel[col[e]].
// Four nonzeros are in flight, each in a chain of its own: nonzero e of a row belongs to chain e mod 4, and the sum is
// (0 + 1) + (2 + 3) + bias, whatever the instruction set. Bound by the two cache lines that each nonzero takes from L2.
#include "cpu/csr_panel.h"

// Rows [from, to) of the output, columns from j. `panel` holds those columns of b, `stride` elements from row to row.
template <class T, int V, class N>
SK_INLINE void spmm_rows(const Spmm<T, N>& s, const PanelOf<T>* panel, int64_t stride, int64_t j, int64_t from, int64_t to) {
  using A = Arith<T>;
  alignas(64) A tile[16 * 16 * V];
  for (int64_t i = from; i < to; i += 16) {
    const int64_t rows = std::min<int64_t>(16, to - i);
    for (int64_t k = 0; k < rows; ++k) {
      const int64_t r = i + k;
      Vec<A> out[V];
      row_product(s.col, s.val, s.crow[r], s.crow[r + 1], panel, stride, out);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) store(tile + (k * V + v) * 16, s.bias ? out[v] + splat(s.bias[r]) : out[v]);
    }
    Dense<T> target = s.out;
    target.height = to;
    store_tile<V>(target, i, j, tile);
  }
}

// `buffer` null: the operand is read where it lies, row-major and of a width that fills whole vectors.
template <class T, int V, class N>
SK_INLINE void spmm_panel(const Spmm<T, N>& s, int64_t j, int64_t from, int64_t to, PanelOf<T>* buffer) {
  if constexpr (std::is_same_v<T, PanelOf<T>>) {
    if (buffer == nullptr) return spmm_rows<T, V>(s, s.b.data + j, s.b.row, j, from, to);
  }
  pack_panel<V>(s.b, j, buffer);
  spmm_rows<T, V>(s, buffer, panel_row<PanelOf<T>>(V), j, from, to);
}

template <class T, class N>
void spmm_piece(const Spmm<T, N>& s, int vectors, int64_t j, int64_t from, int64_t to, void* buffer) {
  auto* panel = static_cast<PanelOf<T>*>(buffer);
  if constexpr (std::is_same_v<T, double>) {
    spmm_panel<T, 1>(s, j, from, to, panel);
  } else if constexpr (std::is_same_v<T, c10::BFloat16>) {
    if (vectors == 4) return spmm_panel<T, 4>(s, j, from, to, panel);
    spmm_panel<T, 2>(s, j, from, to, panel);
  } else {
    if (vectors == 2) return spmm_panel<T, 2>(s, j, from, to, panel);
    spmm_panel<T, 1>(s, j, from, to, panel);
  }
}

// to[e] = val[perm[e]]: a transposed walk takes one value from each of many rows, so each line is asked for before its turn comes.
template <class N, class A>
void gather_values(const N* val, const int32_t* perm, int64_t count, A* to) {
  for (int64_t e = 0; e < count; ++e) {
    const N* from = val + perm[e];
    __builtin_prefetch(reinterpret_cast<const char*>(from) + 128, 0, 2);
    to[e] = static_cast<A>(*from);
  }
}
