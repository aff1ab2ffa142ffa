// The gradients of y = x W^T in one sweep over the nonzeros, column by column of W: with x[c] and the sum dx[c] at hand, each row
// dy[r] of a panel serves dx[c] += val * dy[r] and dval = <dy[r], x[c]>. Chains as in csr_spmm.h; a dot is summed lane by lane over
// the panel's vectors, then over lanes 8, 4, 2 and 1 apart, then over panels in order.
#include "cpu/csr_spmm.h"

// One nonzero: adds to the chain of dx and returns the products of dval, still in lanes.
template <int V, bool need_x, bool need_val, class P>
SK_INLINE Vec<ArithOf<P>> sweep_nonzero(const P* dy, ArithOf<P> weight, const Vec<ArithOf<P>> (&x)[V], Vec<ArithOf<P>> (&sum)[V]) {
  Vec<ArithOf<P>> d[V], product = splat(ArithOf<P>(0));
  load_row(dy, d);
  if constexpr (need_x) {
    const Vec<ArithOf<P>> w = splat(weight);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[v] = fused(w, d[v], sum[v]);
  }
  if constexpr (need_val) {
    product = x[0] * d[0];
#pragma GCC unroll 4
    for (int v = 1; v < V; ++v) product = fused(x[v], d[v], product);
  }
  return product;
}

// One column: `x` and `dx` are rows of 16 V numbers; dval is set by the first panel and added to by the others.
template <int V, bool need_x, bool need_val, class P>
SK_INLINE void sweep_column(const int32_t* row, const ArithOf<P>* val, ArithOf<P>* dval, int64_t count, const P* panel, const ArithOf<P>* x,
                            ArithOf<P>* dx, bool first) {
  using A = ArithOf<P>;
  constexpr int64_t stride = panel_row<P>(V);
  Vec<A> held[V], chain[4][V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    held[v] = load(x + 16 * v);
    chain[0][v] = chain[1][v] = chain[2][v] = chain[3][v] = splat(A(0));
  }
  int64_t e = 0;
  for (; e + 16 <= count; e += 16) {
    const auto sixteen = [&]<size_t... k>(std::index_sequence<k...>) {
      const Vec<A> products[16] = {
          sweep_nonzero<V, need_x, need_val>(panel + row[e + k] * stride, need_x ? val[e + k] : A(0), held, chain[k % 4])...};
      if constexpr (need_val) {
        const Vec<A> sums = sums_of_rows(products);
        store(dval + e, first ? sums : load(dval + e) + sums);
      }
    };
    sixteen(std::make_index_sequence<16>());
  }
  if (e < count) {
    Vec<A> products[16];
    for (auto& each : products) each = splat(A(0));
    const int some = static_cast<int>(count - e);
    auto one = [&](int k, Vec<A>(&sum)[V]) {
      if (k < some) products[k] = sweep_nonzero<V, need_x, need_val>(panel + row[e + k] * stride, need_x ? val[e + k] : A(0), held, sum);
    };
    for (int k = 0; k < some; k += 4) {
      one(k, chain[0]);
      one(k + 1, chain[1]);
      one(k + 2, chain[2]);
      one(k + 3, chain[3]);
    }
    if constexpr (need_val) {
      const Vec<A> sums = sums_of_rows(products);
      store_some(dval + e, first ? sums : load_some(dval + e, some) + sums, some);
    }
  }
  if constexpr (need_x) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(dx + 16 * v, (chain[0][v] + chain[1][v]) + (chain[2][v] + chain[3][v]));
  }
}

template <class T, int V, bool need_x, bool need_val>
SK_INLINE void sweep_panel(const LinearBackward<T>& s, int64_t j, int64_t from, int64_t to, const Arith<T>* val, Arith<T>* dval, PanelOf<T>* panel) {
  using A = Arith<T>;
  alignas(64) A x[16 * 16 * V] = {}, dx[16 * 16 * V];
  Dense<const T> source = s.x;
  Dense<T> target = s.dx;
  source.height = target.height = to;
  pack_panel<V>(s.dy, j, panel);
  const int64_t start = s.crow_t[from];
  for (int64_t i = from; i < to; i += 16) {
    if constexpr (need_val) load_tile<V>(source, i, j, x);
    for (int64_t c = i; c < std::min(i + 16, to); ++c) {
      const int64_t e = s.crow_t[c], at = (c - i) * 16 * V;
      sweep_column<V, need_x, need_val>(s.row_t + e, val + e - start, dval + e - start, s.crow_t[c + 1] - e, panel, x + at, dx + at, j == 0);
    }
    if constexpr (need_x) store_tile<V>(target, i, j, dx);
  }
}

// Columns [from, to) of W, batch entries from j. `val` and `dval` begin at the first nonzero of column `from`.
template <class T, bool need_x, bool need_val>
void backward_piece(const LinearBackward<T>& s, int vectors, int64_t j, int64_t from, int64_t to, const Arith<T>* val, Arith<T>* dval, void* buffer) {
  auto* panel = static_cast<PanelOf<T>*>(buffer);
  if constexpr (std::is_same_v<T, double>) {
    sweep_panel<T, 1, need_x, need_val>(s, j, from, to, val, dval, panel);
  } else {
    if constexpr (!std::is_same_v<T, c10::BFloat16>)
      if (vectors == 1) return sweep_panel<T, 1, need_x, need_val>(s, j, from, to, val, dval, panel);
    sweep_panel<T, 2, need_x, need_val>(s, j, from, to, val, dval, panel);
  }
}

// Sums over the batch of 16 outputs from column r, in runs of 256 entries.
template <class T>
void bias_sums(const Dense<const T>& dy, int64_t r, Arith<T>* to) {
  using A = Arith<T>;
  const int some = static_cast<int>(std::min<int64_t>(16, dy.height - r));
  Vec<A> total = splat(A(0));
  alignas(64) A tile[16 * 16];
  for (int64_t start = 0; start < dy.width; start += 256) {
    Vec<A> run = splat(A(0));
    for (int64_t j = start; j < std::min(start + 256, dy.width); j += dy.row == 1 ? 1 : 16) {
      if (dy.row == 1) {
        run = run + load_some(dy.data + r + j * dy.col, some);
        continue;
      }
      Dense<const T> part = dy;
      part.width = std::min(start + 256, dy.width);
      load_tile<1>(part, r, j, tile);
      Vec<A> lanes[16];
      for (int k = 0; k < 16; ++k) lanes[k] = load(tile + 16 * k);
      transpose(lanes);
      for (int k = 0; k < 16 && j + k < part.width; ++k) run = run + lanes[k];
    }
    total = total + run;
  }
  store_some(to + r, total, some);
}
