// Rows of a packed N:M matrix times a panel of 32 columns of b (64 in bfloat16), as in csr_spmm.h, sums in the same order. The
// column of a value is read as one byte and added to its group's first column, so a value costs 5 bytes (3 in bfloat16)
// against the 8 of CSR; what is not stored costs nothing. Bound by the two cache lines that each value takes from L2; rows that
// share their columns share those lines, four at a time.
#include "cpu/csr_panel.h"

struct NmColumns {
  const int32_t* base;
  const uint8_t* index;
  SK_INLINE int64_t operator[](int64_t e) const { return base[e] + index[e]; }
};

// Four rows that share their columns: each row of the panel is read once for all of them, and a row's sum is one chain.
template <int V, class P, class N>
SK_INLINE void shared_product(const NmColumns& col, const N* val, int64_t per_row, const P* panel, int64_t stride, Vec<ArithOf<P>> (&out)[4][V]) {
  using A = ArithOf<P>;
#pragma GCC unroll 4
  for (auto& row : out)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) row[v] = splat(A(0));
  for (int64_t e = 0; e < per_row; ++e) {
    Vec<A> b[V];
    load_row(panel + col[e] * stride, b);
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const Vec<A> w = splat(static_cast<A>(val[k * per_row + e]));
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) out[k][v] = fused(w, b[v], out[k][v]);
    }
  }
}

// Rows [from, to) of the output, columns from j; see spmm_rows. Where v is a multiple of 4, so are `from` and `to`.
template <class T, int V, class N>
SK_INLINE void nm_rows(const NmProduct<T, N>& s, const PanelOf<T>* panel, int64_t stride, int64_t j, int64_t from, int64_t to) {
  using A = Arith<T>;
  alignas(64) A tile[16 * 16 * V];
  for (int64_t i = from; i < to; i += 16) {
    const int64_t rows = std::min<int64_t>(16, to - i);
    auto put = [&](int64_t k, const Vec<A>(&sum)[V]) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) store(tile + (k * V + v) * 16, s.bias ? sum[v] + splat(s.bias[i + k]) : sum[v]);
    };
    for (int64_t k = 0; k < rows;) {
      const int64_t r = i + k;
      const NmColumns columns{s.base, s.index + r / s.v * s.per_row};
      const N* val = s.val + r * s.per_row;
      if (s.v % 4 == 0) {
        Vec<A> out[4][V];
        shared_product(columns, val, s.per_row, panel, stride, out);
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) put(k++, out[q]);
      } else {
        Vec<A> out[V];
        row_product(columns, val, 0, s.per_row, panel, stride, out);
        put(k++, out);
      }
    }
    Dense<T> target = s.out;
    target.height = to;
    store_tile<V>(target, i, j, tile);
  }
}

template <class T, int V, class N>
SK_INLINE void nm_panel(const NmProduct<T, N>& s, int64_t j, int64_t from, int64_t to, PanelOf<T>* buffer) {
  if constexpr (std::is_same_v<T, PanelOf<T>>) {
    if (buffer == nullptr) return nm_rows<T, V>(s, s.b.data + j, s.b.row, j, from, to);
  }
  pack_panel<V>(s.b, j, buffer);
  nm_rows<T, V>(s, buffer, panel_row<PanelOf<T>>(V), j, from, to);
}

// `buffer` null: b is read where it lies, row-major and of a width that fills whole vectors.
template <class T, class N>
void nm_piece(const NmProduct<T, N>& s, int vectors, int64_t j, int64_t from, int64_t to, void* buffer) {
  auto* panel = static_cast<PanelOf<T>*>(buffer);
  constexpr int most = kPanelVectors<T>;
  if (vectors == most) return nm_panel<T, most>(s, j, from, to, panel);
  if constexpr (most > 1) nm_panel<T, most / 2>(s, j, from, to, panel);
}
