// out[f] = sum over positions b of |x[b, f]|, or of sign[b] * x[b, f] (signs +1 and -1, so a multiplication is exact).
// Three layouts: features side by side (`rows`), positions side by side (`planes`), and planes under the window of a convolution.
// fp32 on at most 4096 elements at a time, fp64 above; the order depends on nothing but the sizes.
// Bytes: x once. A window's unsigned sums fold the images into one plane first, so that its taps cost next to nothing; its signed
// ones read each plane from the caches and do one multiply-add per tap and element.

#include "cpu/lane_sum.h"

constexpr int64_t kSumBlock = 4096;

template <bool is_signed, class A>
SK_INLINE Vec<A> add_term(Vec<A> sum, Vec<A> x, Vec<A> sign) {
  return is_signed ? fused(x, sign, sum) : sum + absolute(x);
}

// ---- features side by side ----

// Adds `rows` rows from position b on to sums[f], a row after the other.
template <bool is_signed, int rows, class T>
SK_INLINE void add_rows(const T* x, const ActivityView& v, const Arith<T>* sign, int64_t b, int64_t count, Arith<T>* sums) {
  using A = Arith<T>;
  const T* row[rows];
  Vec<A> s[rows];
  for (int k = 0; k < rows; ++k) {
    row[k] = x + (b + k) / v.length * v.image + (b + k) % v.length * v.step;
    s[k] = splat(is_signed ? sign[b + k] : A(1));
  }
  int64_t f = 0;
  for (; f + 16 <= count; f += 16) {
    Vec<A> sum = load(sums + f);
    for (int k = 0; k < rows; ++k) sum = add_term<is_signed, A>(sum, load(row[k] + f), s[k]);
    store(sums + f, sum);
  }
  if (f < count) {
    const int live = static_cast<int>(count - f);
    Vec<A> sum = load_some(sums + f, live);
    for (int k = 0; k < rows; ++k) sum = add_term<is_signed, A>(sum, load_some(row[k] + f, live), s[k]);
    store_some(sums + f, sum, live);
  }
}

// sums[f] over the rows [begin, end) of `count` features from x on; four rows for one pass over the sums.
template <bool is_signed, class T>
SK_INLINE void sum_rows_loop(const T* x, const ActivityView& v, const Arith<T>* sign, int64_t begin, int64_t end, int64_t count, Arith<T>* sums) {
  std::fill(sums, sums + count, Arith<T>(0));
  int64_t b = begin;
  for (; b + 4 <= end; b += 4) add_rows<is_signed, 4>(x, v, sign, b, count, sums);
  for (; b < end; ++b) add_rows<is_signed, 1>(x, v, sign, b, count, sums);
}

template <class T>
void sum_rows(const T* x, ActivityView v, const Arith<T>* sign, int64_t begin, int64_t end, int64_t count, Arith<T>* sums) {
  if (sign) sum_rows_loop<true>(x, v, sign, begin, end, count, sums);
  else sum_rows_loop<false>(x, v, sign, begin, end, count, sums);
}

// ---- positions side by side ----

template <bool is_signed, class T>
SK_INLINE double sum_line(const T* x, const Arith<T>* sign, int64_t count) {
  using A = Arith<T>;
  const Vec<A> zero = splat(A(0));
  double total = 0;
  for (int64_t block = 0; block < count; block += kSumBlock) {
    const int64_t end = std::min(block + kSumBlock, count);
    Vec<A> even = zero, odd = zero;
    int64_t i = block;
    for (; i + 32 <= end; i += 32) {
      even = add_term<is_signed, A>(even, load(x + i), is_signed ? load(sign + i) : zero);
      odd = add_term<is_signed, A>(odd, load(x + i + 16), is_signed ? load(sign + i + 16) : zero);
    }
    for (; i < end; i += 16) {
      const int live = static_cast<int>(std::min<int64_t>(16, end - i));
      even = add_term<is_signed, A>(even, load_some(x + i, live), is_signed ? load_some(sign + i, live) : zero);
    }
    total += sum_of_lanes<A>(even + odd);
  }
  return total;
}

// sums[f - from] over the images [begin, end) of features [from, to).
template <class T>
void sum_planes(const T* x, ActivityView v, const Arith<T>* sign, int64_t begin, int64_t end, int64_t from, int64_t to, double* sums) {
  std::fill(sums, sums + (to - from), 0.0);
  for (int64_t n = begin; n < end; ++n)
    for (int64_t f = from; f < to; ++f) {
      const T* plane = x + n * v.image + f * v.feature;
      sums[f - from] += sign ? sum_line<true>(plane, sign + n * v.length, v.length) : sum_line<false>(plane, sign, v.length);
    }
}

// ---- under a window ----

// The outputs o of one side whose tap `t` lies inside the input: from <= o < to, at input o * stride + shift.
struct TapRange {
  int64_t from, to, shift;
};
SK_INLINE TapRange tap_range(const ActivityWindow& w, int side, int64_t t) {
  const int64_t shift = t * w.dilation[side] - w.padding[side], stride = w.stride[side];
  const int64_t from = shift < 0 ? (-shift + stride - 1) / stride : 0;
  const int64_t last = w.input[side] - 1 - shift;
  return {from, std::max(from, last < 0 ? 0 : std::min(w.output[side], last / stride + 1)), shift};
}

// sums[tap] of |x| over the images [begin, end) of one channel; `plane` [H * W] and `lines` [H] are scratch.
template <class T>
void sum_window(const T* x, int64_t image, int64_t begin, int64_t end, ActivityWindow w, Arith<T>* plane, double* lines, double* sums) {
  using A = Arith<T>;
  const int64_t size = w.input[0] * w.input[1];
  std::fill(plane, plane + size, A(0));
  for (int64_t n = begin; n < end; n += 4) {
    const int images = static_cast<int>(std::min<int64_t>(4, end - n));
    for (int64_t i = 0; i < size; i += 16) {
      const int live = static_cast<int>(std::min<int64_t>(16, size - i));
      Vec<A> sum = load_some(plane + i, live);
      for (int k = 0; k < images; ++k) sum = sum + absolute(load_some(x + (n + k) * image + i, live));
      store_some(plane + i, sum, live);
    }
  }
  for (int64_t s = 0; s < w.kernel[1]; ++s) {
    const TapRange wide = tap_range(w, 1, s);
    for (int64_t h = 0; h < w.input[0]; ++h) {
      const A* line = plane + h * w.input[1] + wide.shift;
      double total = 0;
      if (w.stride[1] == 1) total = sum_line<false>(line + wide.from, static_cast<const A*>(nullptr), wide.to - wide.from);
      else
        for (int64_t o = wide.from; o < wide.to; ++o) total += line[o * w.stride[1]];
      lines[h] = total;
    }
    for (int64_t r = 0; r < w.kernel[0]; ++r) {
      const TapRange high = tap_range(w, 0, r);
      double total = 0;
      for (int64_t o = high.from; o < high.to; ++o) total += lines[o * w.stride[0] + high.shift];
      sums[r * w.kernel[1] + s] = total;
    }
  }
}

// The signs of an image as the taps see them, laid over the input: for each kernel column s a plane of (H + (R - 1) * dilation) x W,
// zero where no output reads. Tap (r, s) of input row h then reads row h + (R - 1 - r) * dilation of plane s, so that a tap's sum is one
// product of two straight lines of H * W.
template <class A>
void spread_signs(const A* sign, ActivityWindow w, A* spread) {
  const int64_t rows = w.input[0] + (w.kernel[0] - 1) * w.dilation[0], width = w.input[1];
  std::fill(spread, spread + w.kernel[1] * rows * width, A(0));
  for (int64_t s = 0; s < w.kernel[1]; ++s) {
    const TapRange wide = tap_range(w, 1, s);
    for (int64_t o = 0; o < w.output[0]; ++o) {
      const int64_t row = o * w.stride[0] - w.padding[0] + (w.kernel[0] - 1) * w.dilation[0];
      if (row < 0 || row >= rows) continue;
      A* line = spread + (s * rows + row) * width + wide.shift;
      for (int64_t p = wide.from; p < wide.to; ++p) line[p * w.stride[1]] = sign[o * w.output[1] + p];
    }
  }
}

template <int taps, class T>
SK_INLINE void tap_products(const T* x, const Arith<T>* const* sign, int64_t count, double* sums) {
  using A = Arith<T>;
  for (int t = 0; t < taps; ++t) sums[t] = 0;
  for (int64_t block = 0; block < count; block += kSumBlock) {
    const int64_t end = std::min(block + kSumBlock, count);
    Vec<A> sum[taps];
    for (int t = 0; t < taps; ++t) sum[t] = splat(A(0));
    int64_t i = block;
    for (; i + 16 <= end; i += 16) {
      const Vec<A> value = load(x + i);
      for (int t = 0; t < taps; ++t) sum[t] = fused(value, load(sign[t] + i), sum[t]);
    }
    if (i < end) {
      const int live = static_cast<int>(end - i);
      const Vec<A> value = load_some(x + i, live);
      for (int t = 0; t < taps; ++t) sum[t] = fused(value, load_some(sign[t] + i, live), sum[t]);
    }
    for (int t = 0; t < taps; ++t) sums[t] += sum_of_lanes<A>(sum[t]);
  }
}

// One tap after another over the outputs that read it: where the line product met a NaN or inf that not every tap sees.
template <class T>
void tap_by_tap(const T* x, const Arith<T>* sign, const ActivityWindow& w, double* sums) {
  for (int64_t r = 0; r < w.kernel[0]; ++r)
    for (int64_t s = 0; s < w.kernel[1]; ++s) {
      const TapRange high = tap_range(w, 0, r), wide = tap_range(w, 1, s);
      double total = 0;
      for (int64_t o = high.from; o < high.to; ++o)
        for (int64_t p = wide.from; p < wide.to; ++p)
          total += static_cast<Arith<T>>(x[(o * w.stride[0] + high.shift) * w.input[1] + p * w.stride[1] + wide.shift]) * sign[o * w.output[1] + p];
      sums[r * w.kernel[1] + s] = total;
    }
}

// Adds the signed sums of one image to sums[channel * taps + tap]; `found` [taps] is scratch.
template <class T>
void add_signed_window(const T* x, int64_t channels, const Arith<T>* sign, const Arith<T>* spread, ActivityWindow w, double* found, double* sums) {
  const int64_t size = w.input[0] * w.input[1], taps = w.kernel[0] * w.kernel[1];
  const int64_t plane = size + (w.kernel[0] - 1) * w.dilation[0] * w.input[1];
  for (int64_t c = 0; c < channels; ++c) {
    bool finite = true;
    for (int64_t t = 0; t < taps; t += 4) {
      const int live = static_cast<int>(std::min<int64_t>(4, taps - t));
      const Arith<T>* at[4];
      for (int k = 0; k < live; ++k) {
        const int64_t r = (t + k) / w.kernel[1], s = (t + k) % w.kernel[1];
        at[k] = spread + s * plane + (w.kernel[0] - 1 - r) * w.dilation[0] * w.input[1];
      }
      if (live == 4) tap_products<4>(x + c * size, at, size, found + t);
      else if (live == 3) tap_products<3>(x + c * size, at, size, found + t);
      else if (live == 2) tap_products<2>(x + c * size, at, size, found + t);
      else tap_products<1>(x + c * size, at, size, found + t);
      for (int k = 0; k < live; ++k) finite &= std::isfinite(found[t + k]);
    }
    if (!finite) tap_by_tap(x + c * size, sign, w, found);
    for (int64_t t = 0; t < taps; ++t) sums[c * taps + t] += found[t];
  }
}
