// Sixteen 32-bit keys as a plain array.
struct U32 {
  uint32_t v[16];
};
SK_INLINE U32 splat(uint32_t x) {
  U32 r;
  for (int k = 0; k < 16; ++k) r.v[k] = x;
  return r;
}
SK_INLINE U32 load(const uint32_t* at) {
  U32 r;
  std::memcpy(r.v, at, 64);
  return r;
}
SK_INLINE void store(uint32_t* at, U32 x) { std::memcpy(at, x.v, 64); }
SK_INLINE U32 bits_of(F32 x) {
  U32 r;
  std::memcpy(r.v, x.v, 64);
  return r;
}
SK_INLINE U32 operator+(U32 a, U32 b) {
  for (int k = 0; k < 16; ++k) a.v[k] += b.v[k];
  return a;
}
SK_INLINE U32 operator-(U32 a, U32 b) {
  for (int k = 0; k < 16; ++k) a.v[k] -= b.v[k];
  return a;
}
SK_INLINE U32 operator&(U32 a, U32 b) {
  for (int k = 0; k < 16; ++k) a.v[k] &= b.v[k];
  return a;
}
SK_INLINE U32 operator^(U32 a, U32 b) {
  for (int k = 0; k < 16; ++k) a.v[k] ^= b.v[k];
  return a;
}
// All ones where the top bit is set.
SK_INLINE U32 spread_sign(U32 a) {
  for (int k = 0; k < 16; ++k) a.v[k] = 0u - (a.v[k] >> 31);
  return a;
}
SK_INLINE Mask16 greater(U32 a, U32 b) {
  uint32_t m = 0;
  for (int k = 0; k < 16; ++k) m |= static_cast<uint32_t>(a.v[k] > b.v[k]) << k;
  return static_cast<Mask16>(m);
}
SK_INLINE Mask16 equal(U32 a, U32 b) {
  uint32_t m = 0;
  for (int k = 0; k < 16; ++k) m |= static_cast<uint32_t>(a.v[k] == b.v[k]) << k;
  return static_cast<Mask16>(m);
}
SK_INLINE U32 select(Mask16 m, U32 inside, U32 outside) {
  for (int k = 0; k < 16; ++k) outside.v[k] = (m >> k) & 1 ? inside.v[k] : outside.v[k];
  return outside;
}
// Writes the lanes in `m` one after another; up to 16 lanes of memory may be overwritten.
SK_INLINE void compress(uint32_t* at, Mask16 m, U32 x) {
  for (uint32_t left = m; left; left &= left - 1) *at++ = x.v[__builtin_ctz(left)];
}
SK_INLINE void store_bools(uint8_t* at, Mask16 m) {
  for (int k = 0; k < 16; ++k) at[k] = (m >> k) & 1;
}
