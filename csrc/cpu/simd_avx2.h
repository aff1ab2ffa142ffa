// Sixteen fp32 lanes as two 256-bit registers.
struct F32 {
  __m256 lo, hi;
};
SK_INLINE F32 splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
SK_INLINE F32 operator+(F32 a, F32 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
SK_INLINE F32 operator-(F32 a, F32 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
SK_INLINE F32 operator*(F32 a, F32 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
SK_INLINE F32 absolute(F32 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
SK_INLINE F32 fused(F32 a, F32 b, F32 c) { return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }
// All ones in each of 8 lanes whose bit is set.
SK_INLINE __m256 widen_mask(uint32_t eight) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(eight)), bit), bit));
}
SK_INLINE F32 select(Mask16 m, F32 inside, F32 outside) {
  return {_mm256_blendv_ps(outside.lo, inside.lo, widen_mask(m)), _mm256_blendv_ps(outside.hi, inside.hi, widen_mask(m >> 8))};
}
SK_INLINE F32 load(const float* at) { return {_mm256_loadu_ps(at), _mm256_loadu_ps(at + 8)}; }
SK_INLINE void store(float* at, F32 x) {
  _mm256_storeu_ps(at, x.lo);
  _mm256_storeu_ps(at + 8, x.hi);
}
SK_INLINE F32 gather(const float* from, const int32_t* index) {
  const __m256i* at = reinterpret_cast<const __m256i*>(index);
  return {_mm256_i32gather_ps(from, _mm256_loadu_si256(at), 4), _mm256_i32gather_ps(from, _mm256_loadu_si256(at + 1), 4)};
}
SK_INLINE __m256 from_bf16(__m128i h) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)); }
SK_INLINE F32 load(const c10::BFloat16* at) {
  const __m128i* p = reinterpret_cast<const __m128i*>(at);
  return {from_bf16(_mm_loadu_si128(p)), from_bf16(_mm_loadu_si128(p + 1))};
}
SK_INLINE __m128i to_bf16(__m256 x) {
  __m256i bits = _mm256_castps_si256(x), top = _mm256_srli_epi32(bits, 16);
  __m256i rounded =
      _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), _mm256_and_si256(top, _mm256_set1_epi32(1))), 16);
  __m256i quiet = _mm256_or_si256(top, _mm256_set1_epi32(0x40));
  __m256i result = _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
  __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(result, result), 0x08);
  return _mm256_castsi256_si128(packed);
}
SK_INLINE void store(c10::BFloat16* at, F32 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(at), to_bf16(x.lo));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(at) + 1, to_bf16(x.hi));
}
SK_INLINE F32 load(const c10::Half* at) {
  const __m128i* p = reinterpret_cast<const __m128i*>(at);
  return {_mm256_cvtph_ps(_mm_loadu_si128(p)), _mm256_cvtph_ps(_mm_loadu_si128(p + 1))};
}
SK_INLINE void store(c10::Half* at, F32 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm256_cvtps_ph(x.lo, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(at) + 1, _mm256_cvtps_ph(x.hi, _MM_FROUND_TO_NEAREST_INT));
}
// Sixteen 16-bit values that only move: their bits stay as they are.
struct U16 {
  __m256i v;
};
SK_INLINE U16 load(const uint16_t* at) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at))}; }
SK_INLINE void store(uint16_t* at, U16 x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), x.v); }
SK_INLINE U16 keep(Mask16 m, U16 x) {
  const __m256i bit = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, -32768);
  return {_mm256_and_si256(x.v, _mm256_cmpeq_epi16(_mm256_and_si256(_mm256_set1_epi16(static_cast<int16_t>(m)), bit), bit))};
}
// 64 bools as 64 bits, and back.
SK_INLINE uint64_t bits_of_64_bools(const uint8_t* at) {
  const __m256i* p = reinterpret_cast<const __m256i*>(at);
  const __m256i zero = _mm256_setzero_si256();
  uint32_t low = ~static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_loadu_si256(p), zero)));
  uint32_t high = ~static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_loadu_si256(p + 1), zero)));
  return low | static_cast<uint64_t>(high) << 32;
}
SK_INLINE __m256i bools_of_32_bits(uint32_t bits) {
  const __m256i which = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201u));
  const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(bits)), which);
  return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit), _mm256_set1_epi8(1));
}
SK_INLINE void store_64_bools(uint8_t* at, uint64_t bits) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), bools_of_32_bits(static_cast<uint32_t>(bits)));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(at) + 1, bools_of_32_bits(static_cast<uint32_t>(bits >> 32)));
}
SK_INLINE Mask16 mask_from_bools(const uint8_t* at) {
  __m128i zero = _mm_cmpeq_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)), _mm_setzero_si128());
  return static_cast<Mask16>(~_mm_movemask_epi8(zero));
}
