// Dots of rows of a with rows of b, where a sparse pattern asks for them.
// A row of a is held in registers, sixteen dots at a time keep their lanes apart and are summed together at the end; every
// dot is summed alike, wherever it falls: products in order along each lane, then lanes 8, 4, 2 and 1 apart, then panels.
// What bounds it: 4 bytes of b from the second-level cache for every multiply-add (2 for bfloat16). A row's columns, sums and
// its part of a are asked for two rows early: each is a short run that the hardware does not foresee.
#include "cpu/csr_panel.h"

template <int V>
SK_INLINE F32 dot_lanes(const F32 (&x)[V], const float* row) {
  F32 sum = x[0] * load(row);
#pragma GCC unroll 8
  for (int v = 1; v < V; ++v) sum = fused(x[v], load(row + 16 * v), sum);
  return sum;
}
template <int V>
SK_INLINE F64 dot_lanes(const F64 (&x)[V], const double* row) {
  F64 sum = x[0] * load(row);
  for (int v = 1; v < V; ++v) sum = fused(x[v], load(row + 16 * v), sum);
  return sum;
}
template <int V>
SK_INLINE F32 dot_lanes(const F32 (&x)[V], const uint32_t* row) {
  F32 low, high;
  load_pairs(row, low, high);
  F32 sum = fused(x[1], high, x[0] * low);
#pragma GCC unroll 4
  for (int v = 2; v < V; v += 2) {
    load_pairs(row + 8 * v, low, high);
    sum = fused(x[v + 1], high, fused(x[v], low, sum));
  }
  return sum;
}

// Dots left over from rows whose number is not a multiple of sixteen, until there are sixteen of them.
template <class A>
struct Leftovers {
  alignas(64) A lanes[16 * 16];
  int64_t place[16];
  int count = 0;

  SK_INLINE void add(Vec<A> x, int64_t at, A* sums, bool first) {
    store(lanes + 16 * count, x);
    place[count] = at;
    if (++count == 16) flush(sums, first);
  }
  void flush(A* sums, bool first) {
    Vec<A> x[16];
    for (int k = 0; k < 16; ++k) x[k] = k < count ? load(lanes + 16 * k) : splat(A(0));
    A dots[16];
    store(dots, sums_of_rows(x));
    for (int k = 0; k < count; ++k) sums[place[k]] = first ? dots[k] : sums[place[k]] + dots[k];
    count = 0;
  }
};

template <class T>
SK_INLINE void fetch(const T* at, int64_t count) {
  for (int64_t k = 0; k < count; k += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(at + k);
}

template <int V, class P>
void sddmm_rows(const SddmmSweep<P>& s, int64_t begin, int64_t end) {
  using A = ArithOf<P>;
  constexpr int64_t kEarly = 2;
  std::copy(s.crow + begin, s.crow + end, s.next + begin);
  Leftovers<A> left;
  int64_t usual = 16;
  for (int64_t limit = s.block;; limit += s.block) {
    const bool last = limit >= s.cols;
    for (int64_t row = begin; row < end; ++row) {
      if (row + kEarly < end) {
        const int64_t early = s.next[row + kEarly];
        fetch(s.col + early, usual);
        fetch(s.sums + early, usual);
        fetch(s.a + (row + kEarly) * s.a_row, panel_row<P>(V));
      }
      int64_t e = s.next[row];
      const int64_t start = e, stop = s.crow[row + 1];
      if (e == stop || !(last || s.col[e] < limit)) continue;
      Vec<A> x[V];
      load_row<V>(s.a + row * s.a_row, x);
      for (; e + 16 <= stop && (last || s.col[e + 15] < limit); e += 16) {
        Vec<A> lanes[16];
#pragma GCC unroll 16
        for (int k = 0; k < 16; ++k) lanes[k] = dot_lanes<V>(x, s.b + s.col[e + k] * s.b_row);
        const Vec<A> dots = sums_of_rows(lanes);
        store(s.sums + e, s.first ? dots : load(s.sums + e) + dots);
      }
      for (; e < stop && (last || s.col[e] < limit); ++e) left.add(dot_lanes<V>(x, s.b + s.col[e] * s.b_row), e, s.sums, s.first);
      s.next[row] = e;
      usual = e - start + 8;
    }
    if (last) break;
  }
  if (left.count) left.flush(s.sums, s.first);
}

template <class P>
void sddmm_sweep(const SddmmSweep<P>& s, int vectors, int64_t begin, int64_t end) {
  if constexpr (kLeastVectors<P> == 1) {
    if (vectors == 1) return sddmm_rows<1>(s, begin, end);
  }
  if constexpr (kMostVectors<P> == 8) {
    if (vectors == 2) return sddmm_rows<2>(s, begin, end);
    if (vectors == 4) return sddmm_rows<4>(s, begin, end);
    sddmm_rows<8>(s, begin, end);
  }
}

// Rows [begin, end) of a panel of m.
template <class T>
void sddmm_pack(const Dense<const T>& m, SddmmPanel panel, PanelOf<T>* to, int64_t begin, int64_t end) {
  using P = PanelOf<T>;
  const Dense<const T> part{m.data + begin * m.row, end - begin, m.width, m.row, m.col};
  P* rows = to + begin * panel_row<P>(panel.vectors);
  if constexpr (kLeastVectors<P> == 1) {
    if (panel.vectors == 1) return pack_panel<1>(part, panel.begin, rows);
  }
  if constexpr (kMostVectors<P> == 8) {
    if (panel.vectors == 2) return pack_panel<2>(part, panel.begin, rows);
    if (panel.vectors == 4) return pack_panel<4>(part, panel.begin, rows);
    pack_panel<8>(part, panel.begin, rows);
  }
}

// out[i] = sums[i], rounded once.
template <class T, class A>
void sddmm_round(const A* sums, T* out, int64_t begin, int64_t end) {
  if constexpr (std::is_same_v<A, Arith<T>>) {
    for (int64_t i = begin; i < end; i += 16) {
      const int count = static_cast<int>(std::min<int64_t>(16, end - i));
      store_some(out + i, load_some(sums + i, count), count);
    }
  } else {
    for (int64_t i = begin; i < end; ++i) out[i] = static_cast<T>(static_cast<float>(sums[i]));
  }
}
