// out = weight where the mask is on, +0 elsewhere, rounded once to the output's type.
// 64 elements at a time, pieces of 32K elements over the threads.
// Bytes per element: weight read, out written, mask: 8 + 1 (bool) or 8 + 1/8 (bits) in fp32; bandwidth-bound.
// Equal types only move bits, so a NaN that is kept keeps its payload, and 16-bit types need no conversion.

// To another type: through fp32, which rounds once; fp64 to half precision takes torch's own two steps.
template <class T, class O>
SK_INLINE void keep_lanes(const T* from, O* to, Mask16 inside, int count) {
  if constexpr (std::is_same_v<Arith<T>, Arith<O>>) {
    store_some(to, select(inside, load_some(from, count), splat(Arith<T>(0))), count);
  } else {
    for (int k = 0; k < count; ++k) to[k] = (inside >> k) & 1 ? static_cast<O>(from[k]) : static_cast<O>(0.0f);
  }
}

// The mask of the 64 elements from `at`, a multiple of 32: one load for four rows of lanes.
template <int kind>
SK_INLINE uint64_t mask_of_64(const void* mask, int64_t at) {
  if (kind == 1) return bits_of_64_bools(static_cast<const uint8_t*>(mask) + at);
  uint64_t bits = ~uint64_t(0);
  if (kind == 2) std::memcpy(&bits, static_cast<const uint32_t*>(mask) + (at >> 5), 8);
  return bits;
}

template <int kind, class T, class O>
SK_INLINE void masked_weight_loop(const T* weight, O* out, const void* mask, int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; i + 64 <= end; i += 64) {
    const uint64_t inside = mask_of_64<kind>(mask, i);
    for (int k = 0; k < 64; k += 16) keep_lanes(weight + i + k, out + i + k, static_cast<Mask16>(inside >> k), 16);
  }
  for (; i < end; i += 16) {
    const int count = static_cast<int>(std::min<int64_t>(16, end - i));
    keep_lanes(weight + i, out + i, mask_at(kind, mask, i, count, false), count);
  }
}

template <class T, class O>
void masked_weight_piece(const T* weight, O* out, MaskView mask, int64_t begin, int64_t end) {
  if (mask.kind == MaskKind::bools) masked_weight_loop<1>(weight, out, mask.data, begin, end);
  else if (mask.kind == MaskKind::bits) masked_weight_loop<2>(weight, out, mask.data, begin, end);
  else masked_weight_loop<0>(weight, out, mask.data, begin, end);
}
