// Sixteen 32-bit keys as two 256-bit registers.
struct U32 {
  __m256i lo, hi;
};
SK_INLINE U32 splat(uint32_t x) { return {_mm256_set1_epi32(static_cast<int>(x)), _mm256_set1_epi32(static_cast<int>(x))}; }
SK_INLINE U32 load(const uint32_t* at) {
  const __m256i* p = reinterpret_cast<const __m256i*>(at);
  return {_mm256_loadu_si256(p), _mm256_loadu_si256(p + 1)};
}
SK_INLINE void store(uint32_t* at, U32 x) {
  __m256i* p = reinterpret_cast<__m256i*>(at);
  _mm256_storeu_si256(p, x.lo);
  _mm256_storeu_si256(p + 1, x.hi);
}
SK_INLINE U32 bits_of(F32 x) { return {_mm256_castps_si256(x.lo), _mm256_castps_si256(x.hi)}; }
SK_INLINE U32 operator+(U32 a, U32 b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
SK_INLINE U32 operator-(U32 a, U32 b) { return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)}; }
SK_INLINE U32 operator&(U32 a, U32 b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
SK_INLINE U32 operator^(U32 a, U32 b) { return {_mm256_xor_si256(a.lo, b.lo), _mm256_xor_si256(a.hi, b.hi)}; }
// All ones where the top bit is set.
SK_INLINE U32 spread_sign(U32 a) { return {_mm256_srai_epi32(a.lo, 31), _mm256_srai_epi32(a.hi, 31)}; }
SK_INLINE Mask16 narrow_masks(__m256i lo, __m256i hi) {
  return static_cast<Mask16>(_mm256_movemask_ps(_mm256_castsi256_ps(lo)) | _mm256_movemask_ps(_mm256_castsi256_ps(hi)) << 8);
}
SK_INLINE Mask16 greater(U32 a, U32 b) {
  const U32 bias = splat(0x80000000u);  // AVX2 compares signed integers only
  const U32 x = a ^ bias, y = b ^ bias;
  return narrow_masks(_mm256_cmpgt_epi32(x.lo, y.lo), _mm256_cmpgt_epi32(x.hi, y.hi));
}
SK_INLINE Mask16 equal(U32 a, U32 b) { return narrow_masks(_mm256_cmpeq_epi32(a.lo, b.lo), _mm256_cmpeq_epi32(a.hi, b.hi)); }
SK_INLINE U32 select(Mask16 m, U32 inside, U32 outside) {
  return {_mm256_blendv_epi8(outside.lo, inside.lo, _mm256_castps_si256(widen_mask(m))),
          _mm256_blendv_epi8(outside.hi, inside.hi, _mm256_castps_si256(widen_mask(m >> 8)))};
}
// Writes the lanes in `m` one after another; up to 16 lanes of memory may be overwritten.
SK_INLINE void compress(uint32_t* at, Mask16 m, U32 x) {
  if (m == 0) return;
  uint32_t lanes[16];
  store(lanes, x);
  for (uint32_t left = m; left; left &= left - 1) *at++ = lanes[__builtin_ctz(left)];
}
SK_INLINE void store_bools(uint8_t* at, Mask16 m) {
  const __m128i spread = _mm_shuffle_epi8(_mm_cvtsi32_si128(m), _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1));
  const __m128i bit = _mm_set1_epi64x(static_cast<long long>(0x8040201008040201ull));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm_and_si128(_mm_cmpeq_epi8(_mm_and_si128(spread, bit), bit), _mm_set1_epi8(1)));
}
