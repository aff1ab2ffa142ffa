// Rows of a packed N:M matrix times a panel of 32 columns of b (64 in bfloat16), as in csr_spmm.h, sums in the same order. The
// column of a value is read as one byte and added to its group's first column, so a value costs 5 bytes (3 in bfloat16)
// against the 8 of CSR; what is not stored costs nothing. Bound by the two cache lines that each value takes from L2.
#include "cpu/csr_panel.h"

struct NmColumns {
  const int32_t* base;
  const uint8_t* index;
  SK_INLINE int64_t operator[](int64_t e) const { return base[e] + index[e]; }
};

// Rows [from, to) of the output, columns from j; see spmm_rows.
template <class T, int V, class N>
SK_INLINE void nm_rows(const NmProduct<T, N>& s, const PanelOf<T>* panel, int64_t stride, int64_t j, int64_t from, int64_t to) {
  using A = Arith<T>;
  alignas(64) A tile[16 * 16 * V];
  for (int64_t i = from; i < to; i += 16) {
    const int64_t rows = std::min<int64_t>(16, to - i);
    for (int64_t k = 0; k < rows; ++k) {
      const int64_t r = i + k;
      const NmColumns columns{s.base, s.index + r / s.v * s.per_row};
      Vec<A> out[V];
      row_product(columns, s.val + r * s.per_row, 0, s.per_row, panel, stride, out);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) store(tile + (k * V + v) * 16, s.bias ? out[v] + splat(s.bias[r]) : out[v]);
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
