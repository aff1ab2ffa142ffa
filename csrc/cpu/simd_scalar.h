// Sixteen fp32 lanes as a plain array: what every CPU can do, and the meaning of the other variants.
struct F32 {
  float v[16];
};
SK_INLINE F32 splat(float x) {
  F32 r;
  for (int k = 0; k < 16; ++k) r.v[k] = x;
  return r;
}
SK_INLINE F32 operator+(F32 a, F32 b) {
  for (int k = 0; k < 16; ++k) a.v[k] += b.v[k];
  return a;
}
SK_INLINE F32 operator-(F32 a, F32 b) {
  for (int k = 0; k < 16; ++k) a.v[k] -= b.v[k];
  return a;
}
SK_INLINE F32 operator*(F32 a, F32 b) {
  for (int k = 0; k < 16; ++k) a.v[k] *= b.v[k];
  return a;
}
SK_INLINE F32 absolute(F32 a) {
  for (int k = 0; k < 16; ++k) a.v[k] = std::abs(a.v[k]);
  return a;
}
SK_INLINE F32 fused(F32 a, F32 b, F32 c) {
  for (int k = 0; k < 16; ++k) c.v[k] = std::fma(a.v[k], b.v[k], c.v[k]);
  return c;
}
SK_INLINE F32 select(Mask16 m, F32 inside, F32 outside) {
  for (int k = 0; k < 16; ++k) outside.v[k] = (m >> k) & 1 ? inside.v[k] : outside.v[k];
  return outside;
}
SK_INLINE F32 load(const float* at) {
  F32 r;
  std::memcpy(r.v, at, 64);
  return r;
}
SK_INLINE void store(float* at, F32 x) { std::memcpy(at, x.v, 64); }
SK_INLINE F32 gather(const float* from, const int32_t* index) {
  F32 r;
  for (int k = 0; k < 16; ++k) r.v[k] = from[index[k]];
  return r;
}
SK_INLINE F32 load(const c10::BFloat16* at) {
  F32 r;
  for (int k = 0; k < 16; ++k) {
    uint32_t bits = static_cast<uint32_t>(at[k].x) << 16;
    std::memcpy(&r.v[k], &bits, 4);
  }
  return r;
}
SK_INLINE void store(c10::BFloat16* at, F32 x) {
  for (int k = 0; k < 16; ++k) {
    uint32_t bits;
    std::memcpy(&bits, &x.v[k], 4);
    bool nan = (bits & 0x7fffffff) > 0x7f800000;
    at[k].x = static_cast<uint16_t>(nan ? (bits >> 16) | 0x40 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  }
}
SK_INLINE F32 load(const c10::Half* at) {
  F32 r;
  for (int k = 0; k < 16; ++k) r.v[k] = static_cast<float>(at[k]);
  return r;
}
SK_INLINE void store(c10::Half* at, F32 x) {
  for (int k = 0; k < 16; ++k) at[k] = x.v[k];
}
// Sixteen 16-bit values that only move: their bits stay as they are.
struct U16 {
  uint16_t v[16];
};
SK_INLINE U16 load(const uint16_t* at) {
  U16 r;
  std::memcpy(r.v, at, 32);
  return r;
}
SK_INLINE void store(uint16_t* at, U16 x) { std::memcpy(at, x.v, 32); }
SK_INLINE U16 keep(Mask16 m, U16 x) {
  for (int k = 0; k < 16; ++k) x.v[k] = (m >> k) & 1 ? x.v[k] : uint16_t(0);
  return x;
}
// 64 bools as 64 bits, and back.
SK_INLINE uint64_t bits_of_64_bools(const uint8_t* at) {
  uint64_t bits = 0;
  for (int k = 0; k < 64; ++k) bits |= static_cast<uint64_t>(at[k] != 0) << k;
  return bits;
}
SK_INLINE void store_64_bools(uint8_t* at, uint64_t bits) {
  for (int k = 0; k < 64; ++k) at[k] = (bits >> k) & 1;
}
SK_INLINE Mask16 mask_from_bools(const uint8_t* at) {
  Mask16 m = 0;
  for (int k = 0; k < 16; ++k) m |= static_cast<Mask16>((at[k] != 0) << k);
  return m;
}
