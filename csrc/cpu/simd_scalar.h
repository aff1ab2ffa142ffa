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
SK_INLINE Mask16 mask_from_bools(const uint8_t* at) {
  Mask16 m = 0;
  for (int k = 0; k < 16; ++k) m |= static_cast<Mask16>((at[k] != 0) << k);
  return m;
}
