// sp24_avx512.h in two registers, a row's sixteen groups in each, without mask registers and wide permutations.
struct Halves {
  __m256i lo, hi;
};
struct Lanes32 {
  __m256i lo, hi;
};
SK_INLINE Lanes32 both_of(Lanes32 a, Lanes32 b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
SK_INLINE Lanes32 any_of(Lanes32 a, Lanes32 b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
SK_INLINE Lanes32 none_of(Lanes32 a) { return {_mm256_xor_si256(a.lo, _mm256_set1_epi16(-1)), _mm256_xor_si256(a.hi, _mm256_set1_epi16(-1))}; }
SK_INLINE __m256i lanes_from_16_bits(uint32_t m) {
  const __m256i bit = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, -32768);
  return _mm256_cmpeq_epi16(_mm256_and_si256(_mm256_set1_epi16(static_cast<int16_t>(m)), bit), bit);
}
SK_INLINE Lanes32 lanes_from_bits(uint32_t m) { return {lanes_from_16_bits(m), lanes_from_16_bits(m >> 16)}; }
SK_INLINE Halves splat16(uint16_t x) { return {_mm256_set1_epi16(static_cast<int16_t>(x)), _mm256_set1_epi16(static_cast<int16_t>(x))}; }
SK_INLINE __m256i load_wide(const uint16_t* at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }
SK_INLINE void store_wide(uint16_t* at, __m256i x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), x); }
SK_INLINE void put(uint16_t* at, __m256i x, bool past_cache) {
  if (past_cache) _mm256_stream_si256(reinterpret_cast<__m256i*>(at), x);
  else store_wide(at, x);
}
SK_INLINE void copy_line(uint16_t* to, const uint16_t* from, bool past_cache) {
  put(to, load_wide(from), past_cache);
  put(to + 16, load_wide(from + 16), past_cache);
}
SK_INLINE void finish_stores() { _mm_sfence(); }
SK_INLINE Halves load32(const uint16_t* at) { return {load_wide(at), load_wide(at + 16)}; }
SK_INLINE void store32(uint16_t* at, Halves a) {
  store_wide(at, a.lo);
  store_wide(at + 16, a.hi);
}
SK_INLINE Halves operator&(Halves a, Halves b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
SK_INLINE Halves operator|(Halves a, Halves b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
SK_INLINE Halves operator-(Halves a, Halves b) { return {_mm256_sub_epi16(a.lo, b.lo), _mm256_sub_epi16(a.hi, b.hi)}; }
SK_INLINE Halves smaller(Halves a, Halves b) { return {_mm256_min_epu16(a.lo, b.lo), _mm256_min_epu16(a.hi, b.hi)}; }
SK_INLINE Halves larger(Halves a, Halves b) { return {_mm256_max_epu16(a.lo, b.lo), _mm256_max_epu16(a.hi, b.hi)}; }
SK_INLINE Lanes32 greater16(Halves a, Halves b) { return {_mm256_cmpgt_epi16(a.lo, b.lo), _mm256_cmpgt_epi16(a.hi, b.hi)}; }
SK_INLINE Halves select16(Lanes32 m, Halves inside, Halves outside) {
  return {_mm256_blendv_epi8(outside.lo, inside.lo, m.lo), _mm256_blendv_epi8(outside.hi, inside.hi, m.hi)};
}

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
SK_INLINE void load_groups(const uint16_t* at, __m256i (&r)[4]) {
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) r[k] = pairs_of_groups(load_wide(at + 16 * k));
  transpose_quarters(r);
}
SK_INLINE void store_groups(uint16_t* at, __m256i (&r)[4], bool past_cache) {
  transpose_quarters(r);
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) put(at + 16 * k, groups_of_pairs(r[k]), past_cache);
}
SK_INLINE void load4(const uint16_t* one, const uint16_t* two, Halves (&a)[4]) {
  __m256i r[4], s[4];
  load_groups(one, r);
  load_groups(two, s);
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) a[k] = {r[k], s[k]};
}
SK_INLINE void store4(uint16_t* one, uint16_t* two, const Halves (&a)[4], bool past_cache) {
  __m256i r[4] = {a[0].lo, a[1].lo, a[2].lo, a[3].lo}, s[4] = {a[0].hi, a[1].hi, a[2].hi, a[3].hi};
  store_groups(one, r, past_cache);
  store_groups(two, s, past_cache);
}
SK_INLINE void load_pairs(const uint16_t* at, __m256i& a, __m256i& b) {
  const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
  const __m256i x = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(load_wide(at), order), 0xd8);
  const __m256i y = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(load_wide(at + 16), order), 0xd8);
  a = _mm256_permute2x128_si256(x, y, 0x20);
  b = _mm256_permute2x128_si256(x, y, 0x31);
}
SK_INLINE void store_pairs(uint16_t* at, __m256i a, __m256i b, bool past_cache) {
  const __m256i x = _mm256_unpacklo_epi16(a, b), y = _mm256_unpackhi_epi16(a, b);
  put(at, _mm256_permute2x128_si256(x, y, 0x20), past_cache);
  put(at + 16, _mm256_permute2x128_si256(x, y, 0x31), past_cache);
}
SK_INLINE void load2(const uint16_t* one, const uint16_t* two, Halves& a, Halves& b) {
  load_pairs(one, a.lo, b.lo);
  load_pairs(two, a.hi, b.hi);
}
SK_INLINE void store2(uint16_t* one, uint16_t* two, Halves a, Halves b, bool past_cache) {
  store_pairs(one, a.lo, b.lo, past_cache);
  store_pairs(two, a.hi, b.hi, past_cache);
}

SK_INLINE void store_nibble_row(uint16_t* at, __m256i nibble) {
  const __m256i bytes = _mm256_madd_epi16(nibble, _mm256_set1_epi32(16 << 16 | 1));  // two nibbles to 32 bits
  const __m256i words = _mm256_or_si256(bytes, _mm256_srli_epi64(bytes, 24));        // in the lowest 16 of 64
  const __m256i low =
      _mm256_setr_epi8(0, 1, 8, 9, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 1, 8, 9, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i packed = _mm256_shuffle_epi8(words, low);
  const __m128i four = _mm_unpacklo_epi32(_mm256_castsi256_si128(packed), _mm256_extracti128_si256(packed, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(at), four);
}
SK_INLINE void store_nibbles(uint16_t* one, uint16_t* two, Halves nibble) {
  store_nibble_row(one, nibble.lo);
  store_nibble_row(two, nibble.hi);
}
SK_INLINE __m256i next_nibble_row(__m256i words, __m256i nibble) {
  return _mm256_or_si256(_mm256_srli_epi16(words, 4), _mm256_slli_epi16(nibble, 12));
}
SK_INLINE Halves next_nibble(Halves words, Halves nibble) { return {next_nibble_row(words.lo, nibble.lo), next_nibble_row(words.hi, nibble.hi)}; }
SK_INLINE uint32_t every_fourth(uint64_t one, uint64_t two, int j) {
  const uint64_t which = 0x1111111111111111u << j;
  return static_cast<uint32_t>(_pext_u64(one, which) | _pext_u64(two, which) << 16);
}
