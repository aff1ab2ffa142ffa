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

template <int V, class P>
SK_INLINE void add_nonzero(Vec<ArithOf<P>> (&sum)[V], ArithOf<P> weight, const P* at) {
  Vec<ArithOf<P>> b[V];
  load_row(at, b);
  const Vec<ArithOf<P>> w = splat(weight);
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) sum[v] = fused(w, b[v], sum[v]);
}

// out = sum of val[e] * panel row col[e] over a row's nonzeros [e, end). `col`: a pointer, or anything with an [].
template <int V, class P, class N, class Columns>
SK_INLINE void row_product(const Columns& col, const N* val, int64_t e, int64_t end, const P* panel, int64_t stride, Vec<ArithOf<P>> (&out)[V]) {
  using A = ArithOf<P>;
  Vec<A> c0[V], c1[V], c2[V], c3[V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) c0[v] = c1[v] = c2[v] = c3[v] = splat(A(0));
  for (; e + 4 <= end; e += 4) {
    add_nonzero(c0, static_cast<A>(val[e]), panel + col[e] * stride);
    add_nonzero(c1, static_cast<A>(val[e + 1]), panel + col[e + 1] * stride);
    add_nonzero(c2, static_cast<A>(val[e + 2]), panel + col[e + 2] * stride);
    add_nonzero(c3, static_cast<A>(val[e + 3]), panel + col[e + 3] * stride);
  }
  if (e < end) add_nonzero(c0, static_cast<A>(val[e]), panel + col[e] * stride);
  if (e + 1 < end) add_nonzero(c1, static_cast<A>(val[e + 1]), panel + col[e + 1] * stride);
  if (e + 2 < end) add_nonzero(c2, static_cast<A>(val[e + 2]), panel + col[e + 2] * stride);
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) out[v] = (c0[v] + c1[v]) + (c2[v] + c3[v]);
}
