// Sixteen fp32 lanes in one 512-bit register; Mask16 is the hardware's mask register.
struct F32 {
  __m512 v;
};
SK_INLINE F32 splat(float x) { return {_mm512_set1_ps(x)}; }
SK_INLINE F32 operator+(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
SK_INLINE F32 operator-(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
SK_INLINE F32 operator*(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
SK_INLINE F32 absolute(F32 a) { return {_mm512_abs_ps(a.v)}; }
SK_INLINE F32 fused(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }  // a * b + c, rounded once
SK_INLINE F32 select(Mask16 m, F32 inside, F32 outside) {
  // The value goes through a register: folded into a masked load it would run at a third of the speed from memory (Zen 5).
  __asm__("" : "+v"(inside.v));
  return {_mm512_mask_blend_ps(m, outside.v, inside.v)};
}
SK_INLINE F32 load(const float* at) { return {_mm512_loadu_ps(at)}; }
SK_INLINE void store(float* at, F32 x) { _mm512_storeu_ps(at, x.v); }
SK_INLINE F32 gather(const float* from, const int32_t* index) { return {_mm512_i32gather_ps(_mm512_loadu_si512(index), from, 4)}; }
SK_INLINE F32 load(const c10::BFloat16* at) {
  __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))};
}
SK_INLINE void store(c10::BFloat16* at, F32 x) {
  __m512i bits = _mm512_castps_si512(x.v), top = _mm512_srli_epi32(bits, 16);
  __m512i rounded =
      _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), _mm512_and_si512(top, _mm512_set1_epi32(1))), 16);
  __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
  __m512i result = _mm512_mask_or_epi32(rounded, nan, top, _mm512_set1_epi32(0x40));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), _mm512_cvtepi32_epi16(result));
}
SK_INLINE F32 load(const c10::Half* at) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)))}; }
SK_INLINE void store(c10::Half* at, F32 x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT)); }
// Sixteen 16-bit values that only move: their bits stay as they are.
struct U16 {
  __m256i v;
};
SK_INLINE U16 load(const uint16_t* at) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at))}; }
SK_INLINE void store(uint16_t* at, U16 x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), x.v); }
SK_INLINE U16 keep(Mask16 m, U16 x) {
  __asm__("" : "+v"(x.v));  // as in select
  return {_mm256_maskz_mov_epi16(m, x.v)};
}
// 64 bools as 64 bits, and back.
SK_INLINE uint64_t bits_of_64_bools(const uint8_t* at) {
  const __m512i bytes = _mm512_loadu_si512(at);
  return _mm512_test_epi8_mask(bytes, bytes);
}
SK_INLINE void store_64_bools(uint8_t* at, uint64_t bits) { _mm512_storeu_si512(at, _mm512_maskz_set1_epi8(bits, 1)); }
SK_INLINE Mask16 mask_from_bools(const uint8_t* at) {
  __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
  return _mm_test_epi8_mask(bytes, bytes);
}
