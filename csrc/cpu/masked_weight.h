// out = weight where the mask is on, +0 elsewhere, rounded once to the output's type.
// Sixteen elements at a time, pieces of 32K elements over the threads.
// Bytes per element: weight read, out written, mask: 8 + 1 (bool) or 8 + 1/8 (bits) in fp32; bandwidth-bound.
// Equal types only move bits, so a NaN that is kept keeps its payload, and 16-bit types need no conversion.

template <class T>
SK_INLINE void keep_lanes(const T* from, T* to, Mask16 inside, int count) {
  if constexpr (sizeof(T) == 2) {
    const auto* source = reinterpret_cast<const uint16_t*>(from);
    auto* target = reinterpret_cast<uint16_t*>(to);
    uint16_t tail[16] = {};
    if (count >= 16) return store(target, keep(inside, load(source)));
    std::memcpy(tail, source, 2 * count);
    store(tail, keep(inside, load(tail)));
    std::memcpy(target, tail, 2 * count);
  } else {
    store_some(to, select(inside, load_some(from, count), splat(Arith<T>(0))), count);
  }
}

// To another type: through fp32, which rounds once; fp64 to half precision takes torch's own two steps.
template <class T, class O>
SK_INLINE void keep_lanes(const T* from, O* to, Mask16 inside, int count) {
  if constexpr (std::is_same_v<Arith<T>, Arith<O>>) {
    store_some(to, select(inside, load_some(from, count), splat(Arith<T>(0))), count);
  } else {
    for (int k = 0; k < count; ++k) to[k] = (inside >> k) & 1 ? static_cast<O>(from[k]) : static_cast<O>(0.0f);
  }
}

// Bytes to prefetch ahead. From memory (the ResNet-50 list, one thread, AMD Zen 5) this took 25 ms to 17 and, to bfloat16, 28 to 11;
// in L2 it costs a tenth. Past the end a prefetch does nothing.
constexpr int64_t kAhead = 1024;

template <int kind, class T, class O>
SK_INLINE void masked_weight_loop(const T* weight, O* out, const void* mask, int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; i + 16 <= end; i += 16) {
    __builtin_prefetch(reinterpret_cast<const char*>(weight + i) + kAhead);
    __builtin_prefetch(reinterpret_cast<const char*>(out + i) + kAhead, 1);
    if (kind == 1) __builtin_prefetch(static_cast<const char*>(mask) + i + kAhead);
    keep_lanes(weight + i, out + i, mask_at(kind, mask, i, 16, false), 16);
  }
  if (i < end) keep_lanes(weight + i, out + i, mask_at(kind, mask, i, static_cast<int>(end - i), false), static_cast<int>(end - i));
}

template <class T, class O>
void masked_weight_piece(const T* weight, O* out, MaskView mask, int64_t begin, int64_t end) {
  if (mask.kind == MaskKind::bools) masked_weight_loop<1>(weight, out, mask.data, begin, end);
  else if (mask.kind == MaskKind::bits) masked_weight_loop<2>(weight, out, mask.data, begin, end);
  else masked_weight_loop<0>(weight, out, mask.data, begin, end);
}
