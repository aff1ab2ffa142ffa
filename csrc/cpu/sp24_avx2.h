// sp24_avx512.h without mask registers and wide permutations.
struct Lanes16 {
  __m256i v;
};
SK_INLINE Lanes16 both_of(Lanes16 a, Lanes16 b) { return {_mm256_and_si256(a.v, b.v)}; }
SK_INLINE Lanes16 any_of(Lanes16 a, Lanes16 b) { return {_mm256_or_si256(a.v, b.v)}; }
SK_INLINE Lanes16 none_of(Lanes16 a) { return {_mm256_xor_si256(a.v, _mm256_set1_epi16(-1))}; }
SK_INLINE Lanes16 lanes_from_bits(Mask16 m) {
  const __m256i bit = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, -32768);
  return {_mm256_cmpeq_epi16(_mm256_and_si256(_mm256_set1_epi16(static_cast<int16_t>(m)), bit), bit)};
}
SK_INLINE Mask16 bits_of_lanes(Lanes16 a) {
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
  return static_cast<Mask16>(_mm_movemask_epi8(bytes));
}
SK_INLINE U16 splat16(uint16_t x) { return {_mm256_set1_epi16(static_cast<int16_t>(x))}; }
SK_INLINE U16 operator&(U16 a, U16 b) { return {_mm256_and_si256(a.v, b.v)}; }
SK_INLINE U16 operator|(U16 a, U16 b) { return {_mm256_or_si256(a.v, b.v)}; }
SK_INLINE U16 operator+(U16 a, U16 b) { return {_mm256_add_epi16(a.v, b.v)}; }
SK_INLINE Lanes16 greater16(U16 a, U16 b) { return {_mm256_cmpgt_epi16(a.v, b.v)}; }
SK_INLINE U16 select16(Lanes16 m, U16 inside, U16 outside) { return {_mm256_blendv_epi8(outside.v, inside.v, m.v)}; }

SK_INLINE __m256i load_wide(const uint16_t* at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }
SK_INLINE void store_wide(uint16_t* at, __m256i x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), x); }

// Four registers of four 64-bit numbers as a 4 x 4 matrix, transposed.
SK_INLINE void transpose_quarters(__m256i (&r)[4]) {
  const __m256i a = _mm256_unpacklo_epi64(r[0], r[1]), b = _mm256_unpackhi_epi64(r[0], r[1]);
  const __m256i c = _mm256_unpacklo_epi64(r[2], r[3]), d = _mm256_unpackhi_epi64(r[2], r[3]);
  r[0] = _mm256_permute2x128_si256(a, c, 0x20);
  r[1] = _mm256_permute2x128_si256(b, d, 0x20);
  r[2] = _mm256_permute2x128_si256(a, c, 0x31);
  r[3] = _mm256_permute2x128_si256(b, d, 0x31);
}
// Two groups of four in each half become four pairs, and back.
SK_INLINE __m256i pairs_of_groups(__m256i x) {
  const __m256i order = _mm256_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15, 0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
  return _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(x, order), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
SK_INLINE __m256i groups_of_pairs(__m256i x) {
  const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
  return _mm256_shuffle_epi8(_mm256_permutevar8x32_epi32(x, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7)), order);
}
SK_INLINE void load4(const uint16_t* at, U16 (&a)[4]) {
  __m256i r[4];
  for (int k = 0; k < 4; ++k) r[k] = pairs_of_groups(load_wide(at + 16 * k));
  transpose_quarters(r);
  for (int k = 0; k < 4; ++k) a[k].v = r[k];
}
SK_INLINE void store4(uint16_t* at, const U16 (&a)[4]) {
  __m256i r[4] = {a[0].v, a[1].v, a[2].v, a[3].v};
  transpose_quarters(r);
  for (int k = 0; k < 4; ++k) store_wide(at + 16 * k, groups_of_pairs(r[k]));
}
SK_INLINE void load2(const uint16_t* at, U16& a, U16& b) {
  const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
  const __m256i x = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(load_wide(at), order), 0xd8);
  const __m256i y = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(load_wide(at + 16), order), 0xd8);
  a.v = _mm256_permute2x128_si256(x, y, 0x20);
  b.v = _mm256_permute2x128_si256(x, y, 0x31);
}
SK_INLINE void store2(uint16_t* at, U16 a, U16 b) {
  const __m256i x = _mm256_unpacklo_epi16(a.v, b.v), y = _mm256_unpackhi_epi16(a.v, b.v);
  store_wide(at, _mm256_permute2x128_si256(x, y, 0x20));
  store_wide(at + 16, _mm256_permute2x128_si256(x, y, 0x31));
}

SK_INLINE uint64_t spread_bits(Mask16 m, int j) { return _pdep_u64(m, 0x1111111111111111u << j); }
SK_INLINE Mask16 gather_bits(uint64_t m, int j) { return static_cast<Mask16>(_pext_u64(m, 0x1111111111111111u << j)); }
