// d = <a, b>, q = <b, b>, n = <a, a> over the active elements; then a -= (d / q) b, or an SGD step with that difference.
// Pieces of 32K elements over the threads; each block of 4096 is summed in fp32 on 2 x 16 lanes, everything above in fp64,
// in an order that depends on nothing but the sizes.
// Bytes per fp32 element: products 8, subtraction 12, fused step 24 (+ masks); bandwidth-bound.
// The projection is PCGrad's (Yu et al., 2020), restricted to a mask.
#include "cpu/masked_sgd.h"

constexpr int64_t kDotBlock = 4096;

// Sums of the three products, lane by lane. A plain aggregate and plain functions: lambdas and implicit constructors would
// be compiled for the baseline instruction set.
template <class A>
struct DotLanes {
  Vec<A> d, q, n;
};
template <class A>
SK_INLINE double sum_lanes(Vec<A> x) {
  A lane[16];
  store(lane, x);
  double total = 0;
  for (int k = 0; k < 16; ++k) total += lane[k];
  return total;
}

// Hidden elements are left out by selection, so that a NaN among them counts for nothing. The sums are selected and not the
// loads: from memory, masked loads run at a third of the speed of whole ones (Zen 5, 4M fp32: 2.2 against 0.7 ms).
template <int kind, class A>
SK_INLINE Vec<A> add_active(Vec<A> sum, Vec<A> x, Mask16 inside) {
  return kind == 0 ? sum + x : select(inside, sum + x, sum);
}

template <int kind, bool norm, class G>
SK_INLINE void add_row(DotLanes<Arith<G>>& sums, const G* a, const G* b, const void* mask, int64_t i, int count, bool invert) {
  using A = Arith<G>;
  const Mask16 inside = mask_at(kind, mask, i, count, invert);
  const Vec<A> x = load_some(a + i, count), y = load_some(b + i, count);
  sums.d = add_active<kind, A>(sums.d, x * y, inside);
  sums.q = add_active<kind, A>(sums.q, y * y, inside);
  if (norm) sums.n = add_active<kind, A>(sums.n, x * x, inside);
}

template <int kind, bool norm, class G>
SK_INLINE void dots_loop(const G* a, const G* b, const void* mask, int64_t begin, int64_t end, bool invert, double* sums) {
  using A = Arith<G>;
  const auto zero = splat(A(0));
  double d = 0, q = 0, n = 0;
  for (int64_t block = begin; block < end; block += kDotBlock) {
    const int64_t stop = std::min(block + kDotBlock, end);
    // Two of each, so that an addition need not wait for the one before it.
    DotLanes<A> even{zero, zero, zero}, odd{zero, zero, zero};
    int64_t i = block;
    for (; i + 32 <= stop; i += 32) {
      add_row<kind, norm>(even, a, b, mask, i, 16, invert);
      add_row<kind, norm>(odd, a, b, mask, i + 16, 16, invert);
    }
    for (; i < stop; i += 16) add_row<kind, norm>(even, a, b, mask, i, static_cast<int>(std::min<int64_t>(16, stop - i)), invert);
    d += sum_lanes<A>(even.d + odd.d);
    q += sum_lanes<A>(even.q + odd.q);
    if (norm) n += sum_lanes<A>(even.n + odd.n);
  }
  sums[0] = d;
  sums[1] = q;
  sums[2] = n;
}

// sums[0..2] = d, q, n of one piece; n only where it is asked for.
template <class G>
void dots_piece(const G* a, const G* b, MaskView mask, int64_t begin, int64_t end, bool invert, bool norm, double* sums) {
  if (mask.kind == MaskKind::bools) {
    if (norm) dots_loop<1, true>(a, b, mask.data, begin, end, invert, sums);
    else dots_loop<1, false>(a, b, mask.data, begin, end, invert, sums);
  } else if (mask.kind == MaskKind::bits) {
    if (norm) dots_loop<2, true>(a, b, mask.data, begin, end, invert, sums);
    else dots_loop<2, false>(a, b, mask.data, begin, end, invert, sums);
  } else {
    if (norm) dots_loop<0, true>(a, b, mask.data, begin, end, invert, sums);
    else dots_loop<0, false>(a, b, mask.data, begin, end, invert, sums);
  }
}

template <int kind, class G>
SK_INLINE void subtract_loop(G* a, const G* b, const void* mask, int64_t begin, int64_t end, Arith<G> coefficient) {
  const auto c = splat(coefficient);
  for (int64_t i = begin; i < end; i += 16) {
    const int count = static_cast<int>(std::min<int64_t>(16, end - i));
    const auto x = load_some(a + i, count);
    auto y = x - load_some(b + i, count) * c;
    if (kind != 0) y = select(mask_at(kind, mask, i, count, false), y, x);
    store_some(a + i, y, count);
  }
}

// a -= coefficient * b where the mask is on; elsewhere the old bits.
template <class G>
void subtract_piece(G* a, const G* b, MaskView mask, int64_t begin, int64_t end, Arith<G> coefficient) {
  if (mask.kind == MaskKind::bools) subtract_loop<1>(a, b, mask.data, begin, end, coefficient);
  else if (mask.kind == MaskKind::bits) subtract_loop<2>(a, b, mask.data, begin, end, coefficient);
  else subtract_loop<0>(a, b, mask.data, begin, end, coefficient);
}

template <int kind, class P, class G>
SK_INLINE void projected_sgd_loop(P* param, const G* a, const G* b, P* buffer, const void* mask, int64_t begin, int64_t end, SgdScalars<Arith<P>> s,
                                  Arith<P> inverse_scale, Arith<P> coefficient) {
  const bool dense = kind == 0 && !s.invert;
  const auto scale = splat(inverse_scale), c = splat(coefficient);
  int64_t i = begin;
  for (; i + 16 <= end; i += 16)
    sgd_lanes(param + i, (load(a + i) - load(b + i) * c) * scale, buffer ? buffer + i : nullptr, mask_at(kind, mask, i, 16, s.invert), dense, 16, s);
  if (i < end) {
    const int count = static_cast<int>(end - i);
    sgd_lanes(param + i, (load_some(a + i, count) - load_some(b + i, count) * c) * scale, buffer ? buffer + i : nullptr,
              mask_at(kind, mask, i, count, s.invert), dense, count, s);
  }
}

// The masked SGD step with a - coefficient * b for a gradient; neither is written.
template <class P, class G>
void projected_sgd_piece(P* param, const G* a, const G* b, P* buffer, MaskView mask, int64_t begin, int64_t end, SgdScalars<Arith<P>> s,
                         Arith<P> inverse_scale, Arith<P> coefficient) {
  if (mask.kind == MaskKind::bools) projected_sgd_loop<1>(param, a, b, buffer, mask.data, begin, end, s, inverse_scale, coefficient);
  else if (mask.kind == MaskKind::bits) projected_sgd_loop<2>(param, a, b, buffer, mask.data, begin, end, s, inverse_scale, coefficient);
  else projected_sgd_loop<0>(param, a, b, buffer, mask.data, begin, end, s, inverse_scale, coefficient);
}
