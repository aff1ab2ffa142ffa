// sp24_avx512.h in plain C++.
using Lanes16 = Mask16;
SK_INLINE Lanes16 both_of(Lanes16 a, Lanes16 b) { return a & b; }
SK_INLINE Lanes16 any_of(Lanes16 a, Lanes16 b) { return a | b; }
SK_INLINE Lanes16 none_of(Lanes16 a) { return static_cast<Lanes16>(~a); }
SK_INLINE Lanes16 lanes_from_bits(Mask16 m) { return m; }
SK_INLINE Mask16 bits_of_lanes(Lanes16 a) { return a; }
SK_INLINE U16 splat16(uint16_t x) {
  U16 r;
  for (int k = 0; k < 16; ++k) r.v[k] = x;
  return r;
}
SK_INLINE U16 operator&(U16 a, U16 b) {
  for (int k = 0; k < 16; ++k) a.v[k] &= b.v[k];
  return a;
}
SK_INLINE U16 operator|(U16 a, U16 b) {
  for (int k = 0; k < 16; ++k) a.v[k] |= b.v[k];
  return a;
}
SK_INLINE U16 operator+(U16 a, U16 b) {
  for (int k = 0; k < 16; ++k) a.v[k] = static_cast<uint16_t>(a.v[k] + b.v[k]);
  return a;
}
SK_INLINE Lanes16 greater16(U16 a, U16 b) {
  Lanes16 m = 0;
  for (int k = 0; k < 16; ++k) m |= static_cast<Lanes16>((a.v[k] > b.v[k]) << k);
  return m;
}
SK_INLINE U16 select16(Lanes16 m, U16 inside, U16 outside) {
  for (int k = 0; k < 16; ++k) outside.v[k] = (m >> k) & 1 ? inside.v[k] : outside.v[k];
  return outside;
}
SK_INLINE void load4(const uint16_t* at, U16 (&a)[4]) {
  for (int k = 0; k < 64; ++k) a[k % 4].v[k / 4] = at[k];
}
SK_INLINE void store4(uint16_t* at, const U16 (&a)[4]) {
  for (int k = 0; k < 64; ++k) at[k] = a[k % 4].v[k / 4];
}
SK_INLINE void load2(const uint16_t* at, U16& a, U16& b) {
  for (int k = 0; k < 16; ++k) a.v[k] = at[2 * k], b.v[k] = at[2 * k + 1];
}
SK_INLINE void store2(uint16_t* at, U16 a, U16 b) {
  for (int k = 0; k < 16; ++k) at[2 * k] = a.v[k], at[2 * k + 1] = b.v[k];
}

SK_INLINE uint64_t spread_bits(Mask16 m, int j) {
  uint64_t r = 0;
  for (int k = 0; k < 16; ++k) r |= static_cast<uint64_t>(m >> k & 1) << (4 * k + j);
  return r;
}
SK_INLINE Mask16 gather_bits(uint64_t m, int j) {
  Mask16 r = 0;
  for (int k = 0; k < 16; ++k) r |= static_cast<Mask16>((m >> (4 * k + j) & 1) << k);
  return r;
}
