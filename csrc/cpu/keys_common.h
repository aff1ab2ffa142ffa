// What the variants share: 64-bit keys (fp64 is for tests, so plain loops), keys from values, and writing 16 lanes of a mask.
struct U64 {
  uint64_t v[16];
};
SK_INLINE U64 splat(uint64_t x) {
  U64 r;
  for (int k = 0; k < 16; ++k) r.v[k] = x;
  return r;
}
SK_INLINE U64 load(const uint64_t* at) {
  U64 r;
  std::memcpy(r.v, at, 128);
  return r;
}
SK_INLINE void store(uint64_t* at, U64 x) { std::memcpy(at, x.v, 128); }
SK_INLINE U64 bits_of(F64 x) {
  U64 r;
  std::memcpy(r.v, x.v, 128);
  return r;
}
SK_INLINE U64 operator+(U64 a, U64 b) {
  for (int k = 0; k < 16; ++k) a.v[k] += b.v[k];
  return a;
}
SK_INLINE U64 operator-(U64 a, U64 b) {
  for (int k = 0; k < 16; ++k) a.v[k] -= b.v[k];
  return a;
}
SK_INLINE U64 operator&(U64 a, U64 b) {
  for (int k = 0; k < 16; ++k) a.v[k] &= b.v[k];
  return a;
}
SK_INLINE U64 operator^(U64 a, U64 b) {
  for (int k = 0; k < 16; ++k) a.v[k] ^= b.v[k];
  return a;
}
SK_INLINE U64 spread_sign(U64 a) {
  for (int k = 0; k < 16; ++k) a.v[k] = 0ull - (a.v[k] >> 63);
  return a;
}
SK_INLINE Mask16 greater(U64 a, U64 b) {
  uint32_t m = 0;
  for (int k = 0; k < 16; ++k) m |= static_cast<uint32_t>(a.v[k] > b.v[k]) << k;
  return static_cast<Mask16>(m);
}
SK_INLINE Mask16 equal(U64 a, U64 b) {
  uint32_t m = 0;
  for (int k = 0; k < 16; ++k) m |= static_cast<uint32_t>(a.v[k] == b.v[k]) << k;
  return static_cast<Mask16>(m);
}
SK_INLINE U64 select(Mask16 m, U64 inside, U64 outside) {
  for (int k = 0; k < 16; ++k) outside.v[k] = (m >> k) & 1 ? inside.v[k] : outside.v[k];
  return outside;
}
SK_INLINE void compress(uint64_t* at, Mask16 m, U64 x) {
  for (uint32_t left = m; left; left &= left - 1) *at++ = x.v[__builtin_ctz(left)];
}

// KeyOrder (common/keys.h) over sixteen lanes.
template <class Format>
struct KeyLanes {
  using Key = typename Format::Key;
  decltype(splat(Key())) base, use_sign, flip;
  SK_INLINE explicit KeyLanes(KeyOrder<Format> order) : base(splat(order.base)), use_sign(splat(order.use_sign)), flip(splat(order.flip)) {}

  template <class Values>
  SK_INLINE auto of(Values values) const {
    const auto bits = bits_of(values), magnitude = bits & splat(Format::kMagnitude), minus = (spread_sign(bits) & use_sign) ^ flip;
    return select(greater(magnitude, splat(Format::kInfinity)), splat(Key(kNaNKey)), base + ((magnitude ^ minus) - minus));
  }
};

// Writes the mask of `count` (at most 16) elements from element `at`, a multiple of 16, in either storage form (MaskKind
// of check.h; none: nothing is written). Packed words are written in order, and the padding of the last one is zero.
SK_INLINE void put_mask(int kind, void* mask, int64_t at, int count, Mask16 m) {
  if (kind == 1) {
    uint8_t* bytes = static_cast<uint8_t*>(mask) + at;
    if (count >= 16) return store_bools(bytes, m);
    uint8_t tail[16];
    store_bools(tail, m);
    std::memcpy(bytes, tail, count);
  } else if (kind == 2) {
    uint32_t& word = static_cast<uint32_t*>(mask)[at >> 5];
    word = at & 16 ? word | static_cast<uint32_t>(m) << 16 : m;
  }
}
