// What the variants share: fp64 lanes (for tests, so plain loops), tails, and masks from either storage form.
struct F64 {
  double v[16];
};
SK_INLINE F64 splat(double x) {
  F64 r;
  for (int k = 0; k < 16; ++k) r.v[k] = x;
  return r;
}
SK_INLINE F64 operator+(F64 a, F64 b) {
  for (int k = 0; k < 16; ++k) a.v[k] += b.v[k];
  return a;
}
SK_INLINE F64 operator-(F64 a, F64 b) {
  for (int k = 0; k < 16; ++k) a.v[k] -= b.v[k];
  return a;
}
SK_INLINE F64 operator*(F64 a, F64 b) {
  for (int k = 0; k < 16; ++k) a.v[k] *= b.v[k];
  return a;
}
SK_INLINE F64 absolute(F64 a) {
  for (int k = 0; k < 16; ++k) a.v[k] = std::abs(a.v[k]);
  return a;
}
SK_INLINE F64 fused(F64 a, F64 b, F64 c) {
  for (int k = 0; k < 16; ++k) c.v[k] = std::fma(a.v[k], b.v[k], c.v[k]);
  return c;
}
SK_INLINE F64 select(Mask16 m, F64 inside, F64 outside) {
  for (int k = 0; k < 16; ++k) outside.v[k] = (m >> k) & 1 ? inside.v[k] : outside.v[k];
  return outside;
}
SK_INLINE F64 load(const double* at) {
  F64 r;
  std::memcpy(r.v, at, 128);
  return r;
}
SK_INLINE void store(double* at, F64 x) { std::memcpy(at, x.v, 128); }

// The 16 lanes of arithmetic type A (float or double).
template <class A>
using Vec = std::conditional_t<std::is_same_v<A, double>, F64, F32>;

// The first `count` lanes of a row that may end there; the others are zero and not touched in memory.
template <class T>
SK_INLINE Vec<Arith<T>> load_some(const T* at, int count) {
  if (count >= 16) return load(at);
  T tail[16] = {};
  std::memcpy(static_cast<void*>(tail), at, count * sizeof(T));
  return load(tail);
}
template <class T>
SK_INLINE void store_some(T* at, Vec<Arith<T>> x, int count) {
  if (count >= 16) return store(at, x);
  T tail[16];
  store(tail, x);
  std::memcpy(static_cast<void*>(at), tail, count * sizeof(T));
}

// to = from where `inside`, +0 elsewhere, `count` elements; the bits of what is kept stay as they are.
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

// Sixteen elements from the given places; where the hardware has no such load, through a block on the stack.
template <class T, class I>
SK_INLINE Vec<Arith<T>> gather(const T* from, const I* index) {
  T block[16];
  for (int k = 0; k < 16; ++k) block[k] = from[index[k]];
  return load(block);
}

// The mask of `count` (at most 16) elements from element `at`, a multiple of 16 where the mask is packed. Lanes past
// `count` are off. `kind` 0: no mask, all on; 1: one byte per element; 2: one bit per element (MaskKind of check.h).
SK_INLINE Mask16 mask_at(int kind, const void* mask, int64_t at, int count, bool invert) {
  const Mask16 all = static_cast<Mask16>(count >= 16 ? 0xffffu : (1u << count) - 1);
  Mask16 inside = all;
  if (kind == 2) {
    inside = static_cast<Mask16>(static_cast<const uint32_t*>(mask)[at >> 5] >> (at & 16));
  } else if (kind == 1) {
    const uint8_t* bytes = static_cast<const uint8_t*>(mask) + at;
    uint8_t tail[16] = {};
    if (count < 16) {
      std::memcpy(tail, bytes, count);
      bytes = tail;
    }
    inside = mask_from_bools(bytes);
  }
  return static_cast<Mask16>((invert ? ~inside : inside) & all);
}
