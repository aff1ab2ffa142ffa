// Panels and tiles: how dense operands come in and results go out. No guard: compiled once per instruction set.

template <int V>
SK_INLINE void load_row(const float* at, F32 (&r)[V]) {
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) r[v] = load(at + 16 * v);
}
template <int V>
SK_INLINE void load_row(const double* at, F64 (&r)[V]) {
  for (int v = 0; v < V; ++v) r[v] = load(at + 16 * v);
}
template <int V>
SK_INLINE void load_row(const uint32_t* at, F32 (&r)[V]) {
#pragma GCC unroll 2
  for (int v = 0; v < V; v += 2) load_pairs(at + 8 * v, r[v], r[v + 1]);
}

// Rows [i, i + 16) and columns [j, j + 16 V) of a matrix as a row-major tile; what lies outside the matrix is 0.
template <int V, class T>
SK_INLINE void load_tile(const Dense<const T>& m, int64_t i, int64_t j, Arith<T>* tile) {
  using A = Arith<T>;
  const int rows = static_cast<int>(std::min<int64_t>(16, m.height - i));
  const int64_t columns = m.width - j;
  for (int v = 0; v < V; ++v) {
    const int some = static_cast<int>(std::clamp<int64_t>(columns - 16 * v, 0, 16));
    if (m.col == 1) {
      const T* from = m.data + i * m.row + j + 16 * v;
      for (int k = 0; k < 16; ++k) store(tile + (k * V + v) * 16, k < rows && some > 0 ? load_some(from + k * m.row, some) : splat(A(0)));
      continue;
    }
    const T* from = m.data + i + (j + 16 * v) * m.col;
    Vec<A> r[16];
    if (rows == 16 && some == 16) {
#pragma GCC unroll 16
      for (int k = 0; k < 16; ++k) r[k] = load(from + k * m.col);
    } else {
      for (int k = 0; k < 16; ++k) r[k] = k < some ? load_some(from + k * m.col, rows) : splat(A(0));
    }
    transpose(r);
#pragma GCC unroll 16
    for (int k = 0; k < 16; ++k) store(tile + (k * V + v) * 16, r[k]);
  }
}

template <int V, class T>
SK_INLINE void store_tile(const Dense<T>& m, int64_t i, int64_t j, const Arith<T>* tile) {
  using A = Arith<T>;
  const int rows = static_cast<int>(std::min<int64_t>(16, m.height - i));
  const int64_t columns = m.width - j;
  for (int v = 0; v < V && columns > 16 * v; ++v) {
    const int some = static_cast<int>(std::min<int64_t>(16, columns - 16 * v));
    if (m.col == 1) {
      T* to = m.data + i * m.row + j + 16 * v;
      for (int k = 0; k < rows; ++k) store_some(to + k * m.row, load(tile + (k * V + v) * 16), some);
      continue;
    }
    T* to = m.data + i + (j + 16 * v) * m.col;
    Vec<A> r[16];
#pragma GCC unroll 16
    for (int k = 0; k < 16; ++k) r[k] = load(tile + (k * V + v) * 16);
    transpose(r);
    if (rows == 16 && some == 16) {
#pragma GCC unroll 16
      for (int k = 0; k < 16; ++k) store(to + k * m.col, r[k]);
    } else {
      for (int k = 0; k < some; ++k) store_some(to + k * m.col, r[k], rows);
    }
  }
}

// Columns [j, j + 16 V) of a matrix, zero past its width.
template <int V, class T>
SK_INLINE void pack_panel(const Dense<const T>& m, int64_t j, PanelOf<T>* panel) {
  using P = PanelOf<T>;
  using A = Arith<T>;
  alignas(64) A tile[16 * 16 * V];
  for (int64_t i = 0; i < m.height; i += 16) {
    const int64_t rows = std::min<int64_t>(16, m.height - i);
    P* to = panel + i * panel_row<P>(V);
    if constexpr (std::is_same_v<P, A>) {
      if (rows == 16) {
        load_tile<V>(m, i, j, to);
        continue;
      }
      load_tile<V>(m, i, j, tile);
      std::memcpy(to, tile, rows * 16 * V * sizeof(A));
    } else {
      load_tile<V>(m, i, j, tile);
      for (int64_t k = 0; k < rows; ++k)
        for (int v = 0; v < V; v += 2)
          store_pairs(to + k * panel_row<P>(V) + 8 * v, load(tile + (k * V + v) * 16), load(tile + (k * V + v + 1) * 16));
    }
  }
}
