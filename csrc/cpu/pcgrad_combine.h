// All products <g_i, g_j> of T gradients in one pass, and out = sum_k w_k g_k in another.
// Pieces of 32K elements over the threads. A block of 2048 elements of all gradients is read from memory once and multiplied
// two by two tasks at a time out of the caches; its fp32 lanes are summed in fp64, in an order that only the sizes give.
// Bytes per fp32 element: 4 T, then 4 T + 4; bandwidth-bound.

constexpr int64_t kGramBlock = 2048;

template <class A>
SK_INLINE double sum_lanes(Vec<A> x) {
  A lane[16];
  store(lane, x);
  double total = 0;
  for (int k = 0; k < 16; ++k) total += lane[k];
  return total;
}

// Products of two gradients with two others over one block; a plain aggregate and plain functions, as everywhere in here.
template <class A>
struct Products {
  Vec<A> v00, v01, v10, v11;
};

template <class G>
SK_INLINE void add_products(Products<Arith<G>>& sums, const G* a0, const G* a1, const G* b0, const G* b1, int64_t at, int count) {
  using A = Arith<G>;
  const Vec<A> x0 = load_some(a0 + at, count), x1 = load_some(a1 + at, count), y0 = load_some(b0 + at, count), y1 = load_some(b1 + at, count);
  sums.v00 = fused(x0, y0, sums.v00);
  sums.v01 = fused(x0, y1, sums.v01);
  sums.v10 = fused(x1, y0, sums.v10);
  sums.v11 = fused(x1, y1, sums.v11);
}

template <class G>
SK_INLINE void gram_tile(const G* const* rows, int tasks, int i, int j, int64_t begin, int64_t end, double* sums) {
  using A = Arith<G>;
  const int i1 = std::min(i + 1, tasks - 1), j1 = std::min(j + 1, tasks - 1);  // past the last task: once more, for nothing
  const auto zero = splat(A(0));
  // Two of each, so that an addition need not wait for the one before it.
  Products<A> even{zero, zero, zero, zero}, odd{zero, zero, zero, zero};
  int64_t at = begin;
  for (; at + 32 <= end; at += 32) {
    add_products(even, rows[i], rows[i1], rows[j], rows[j1], at, 16);
    add_products(odd, rows[i], rows[i1], rows[j], rows[j1], at + 16, 16);
  }
  for (; at < end; at += 16) add_products(even, rows[i], rows[i1], rows[j], rows[j1], at, static_cast<int>(std::min<int64_t>(16, end - at)));
  sums[i * tasks + j] += sum_lanes<A>(even.v00 + odd.v00);
  if (j1 > j) sums[i * tasks + j1] += sum_lanes<A>(even.v01 + odd.v01);
  if (i1 > i && j > i) sums[i1 * tasks + j] += sum_lanes<A>(even.v10 + odd.v10);
  if (i1 > i && j1 > j) sums[i1 * tasks + j1] += sum_lanes<A>(even.v11 + odd.v11);
}

// Adds the products of one piece to the upper triangle of sums [tasks, tasks].
template <class G>
void gram_piece(const void* const* grads, int tasks, int64_t begin, int64_t end, double* sums) {
  const auto* rows = reinterpret_cast<const G* const*>(grads);
  for (int64_t block = begin; block < end; block += kGramBlock)
    for (int i = 0; i < tasks; i += 2)
      for (int j = i; j < tasks; j += 2) gram_tile(rows, tasks, i, j, block, std::min(block + kGramBlock, end), sums);
}

template <class G>
void combine_piece(const void* const* grads, const double* weights, int tasks, int64_t begin, int64_t end, G* out) {
  using A = Arith<G>;
  const auto* rows = reinterpret_cast<const G* const*>(grads);
  for (int64_t i = begin; i < end; i += 16) {
    const int count = static_cast<int>(std::min<int64_t>(16, end - i));
    auto sum = load_some(rows[0] + i, count) * splat(static_cast<A>(weights[0]));
    for (int k = 1; k < tasks; ++k) sum = fused(load_some(rows[k] + i, count), splat(static_cast<A>(weights[k])), sum);
    store_some(out + i, sum, count);
  }
}
