// sums[0] = sum over a of |w|, sums[1] = sum over b of |w|, of each row of a weight: by selection, hidden values never show.
// 64 elements at a time, fp32 on at most 4096 of them, fp64 above; the order depends on nothing but the sizes.
// Bytes per element: 4 and both masks, in fp32; bandwidth-bound.

#include "cpu/lane_sum.h"

constexpr int64_t kScoreBlock = 4096;

// The mask of 64 elements from any place.
SK_INLINE uint64_t score_mask(MaskView mask, int64_t at) {
  if (mask.kind == MaskKind::none) return ~uint64_t(0);
  if (mask.kind == MaskKind::bools) return bits_of_64_bools(static_cast<const uint8_t*>(mask.data) + at);
  const uint32_t* word = static_cast<const uint32_t*>(mask.data) + (at >> 5);
  uint64_t bits;
  std::memcpy(&bits, word, 8);
  const int shift = static_cast<int>(at & 31);
  return shift == 0 ? bits : bits >> shift | static_cast<uint64_t>(word[2]) << (64 - shift);
}

// The same of the last `count` elements, fewer than 64.
SK_INLINE uint64_t score_mask_tail(MaskView mask, int64_t at, int64_t count) {
  const uint64_t all = (uint64_t(1) << count) - 1;
  if (mask.kind == MaskKind::none) return all;
  if (mask.kind == MaskKind::bools) {
    uint8_t tail[64] = {};
    std::memcpy(tail, static_cast<const uint8_t*>(mask.data) + at, count);
    return bits_of_64_bools(tail);
  }
  uint64_t bits = 0;
  for (int64_t k = 0; k < count; ++k)
    bits |= static_cast<uint64_t>(static_cast<const uint32_t*>(mask.data)[(at + k) >> 5] >> ((at + k) & 31) & 1) << k;
  return bits;
}

// Asks for what 64 elements will need 8 KB of weights later, past the end of a row too. The hardware's own fetching alone gave
// three quarters of the copy bandwidth, this nearly all of it (AMD Zen 5, one thread).
template <class T>
SK_INLINE void fetch_ahead(const T* w) {
  for (size_t line = 0; line < 64 * sizeof(T); line += 64) __builtin_prefetch(reinterpret_cast<const char*>(w) + 8192 + line);
}
SK_INLINE void fetch_ahead(MaskView mask, int64_t at) {
  if (mask.kind == MaskKind::bools) __builtin_prefetch(static_cast<const uint8_t*>(mask.data) + at + 2048);
}

template <bool has_b, class T>
SK_INLINE void score_part(const T* w, MaskView a, MaskView b, int64_t begin, int64_t end, double* sums) {
  using A = Arith<T>;
  const Vec<A> zero = splat(A(0));
  sums[0] = sums[1] = 0;
  for (int64_t block = begin; block < end; block += kScoreBlock) {
    const int64_t stop = std::min(block + kScoreBlock, end);
    Vec<A> in_a[4] = {zero, zero, zero, zero}, in_b[4] = {zero, zero, zero, zero};  // chains of sums that do not wait for each other
    int64_t i = block;
    for (; i + 64 <= stop; i += 64) {
      fetch_ahead(w + i);
      fetch_ahead(a, i);
      if (has_b) fetch_ahead(b, i);
      const uint64_t on_a = score_mask(a, i), on_b = has_b ? score_mask(b, i) : 0;
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        const Vec<A> size = absolute(load(w + i + 16 * k));
        in_a[k] = in_a[k] + select(static_cast<Mask16>(on_a >> 16 * k), size, zero);
        if (has_b) in_b[k] = in_b[k] + select(static_cast<Mask16>(on_b >> 16 * k), size, zero);
      }
    }
    if (i < stop) {
      const uint64_t on_a = score_mask_tail(a, i, stop - i), on_b = has_b ? score_mask_tail(b, i, stop - i) : 0;
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        const int count = static_cast<int>(std::min<int64_t>(16, stop - i - 16 * k));
        if (count <= 0) break;
        const Vec<A> size = absolute(load_some(w + i + 16 * k, count));
        in_a[k] = in_a[k] + select(static_cast<Mask16>(on_a >> 16 * k), size, zero);
        if (has_b) in_b[k] = in_b[k] + select(static_cast<Mask16>(on_b >> 16 * k), size, zero);
      }
    }
    sums[0] += sum_of_lanes<A>((in_a[0] + in_a[1]) + (in_a[2] + in_a[3]));
    if (has_b) sums[1] += sum_of_lanes<A>((in_b[0] + in_b[1]) + (in_b[2] + in_b[3]));
  }
}

// The elements [begin, end) of the rows [from, to); a row's two sums lie `step` after those of the row before.
template <class T>
void score_rows(const T* w, MaskView a, MaskView b, bool has_b, int64_t row_size, int64_t from, int64_t to, int64_t begin, int64_t end, double* sums,
                int64_t step) {
  for (int64_t row = from; row < to; ++row, sums += step) {
    const int64_t at = row * row_size;
    if (has_b) score_part<true>(w, a, b, at + begin, at + end, sums);
    else score_part<false>(w, a, b, at + begin, at + end, sums);
  }
}
