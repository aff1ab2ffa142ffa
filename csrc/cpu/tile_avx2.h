// Sixteen rows of sixteen lanes at once, and two bfloat16 numbers in one 32-bit word.

SK_INLINE void transpose_8(__m256 (&r)[8]) {
  __m256 a[8], b[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    a[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    r[k] = _mm256_permute2f128_ps(b[k], b[4 + k], 0x20);
    r[k + 4] = _mm256_permute2f128_ps(b[k], b[4 + k], 0x31);
  }
}
SK_INLINE void transpose(F32 (&r)[16]) {
  __m256 block[4][8];  // top left, top right, bottom left, bottom right
  for (int i = 0; i < 8; ++i) {
    block[0][i] = r[i].lo;
    block[1][i] = r[i].hi;
    block[2][i] = r[8 + i].lo;
    block[3][i] = r[8 + i].hi;
  }
  for (auto& each : block) transpose_8(each);
  for (int i = 0; i < 8; ++i) {
    r[i] = {block[0][i], block[2][i]};
    r[8 + i] = {block[1][i], block[3][i]};
  }
}

// Lane k is the sum of r[k]: lanes 8 apart first, then 4, 2 and 1.
SK_INLINE __m256 sums_of_8(const F32* r) {
  __m256 quarter[4], eighth[2];
  // Slots in the order that leaves the sums in order: 0 4, 1 5, 2 6, 3 7 share the halves of a register.
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m256 x = _mm256_add_ps(r[i].lo, r[i].hi), y = _mm256_add_ps(r[i + 4].lo, r[i + 4].hi);
    quarter[i] = _mm256_add_ps(_mm256_permute2f128_ps(x, y, 0x20), _mm256_permute2f128_ps(x, y, 0x31));
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const __m256d x = _mm256_castps_pd(quarter[2 * i]), y = _mm256_castps_pd(quarter[2 * i + 1]);
    eighth[i] = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(x, y)), _mm256_castpd_ps(_mm256_unpackhi_pd(x, y)));
  }
  return _mm256_add_ps(_mm256_shuffle_ps(eighth[0], eighth[1], 0x88), _mm256_shuffle_ps(eighth[0], eighth[1], 0xdd));
}
SK_INLINE F32 sums_of_rows(const F32 (&r)[16]) { return {sums_of_8(r), sums_of_8(r + 8)}; }

SK_INLINE __m256i pair_8(__m256 low, __m256 high) {
  return _mm256_blend_epi16(_mm256_srli_epi32(_mm256_castps_si256(low), 16), _mm256_castps_si256(high), 0xaa);
}
SK_INLINE void store_pairs(uint32_t* at, F32 low, F32 high) {  // both must be bfloat16 numbers
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), pair_8(low.lo, high.lo));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(at) + 1, pair_8(low.hi, high.hi));
}
SK_INLINE void load_pairs(const uint32_t* at, F32& low, F32& high) {
  const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)), y = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at) + 1);
  const __m256i top = _mm256_set1_epi32(static_cast<int>(0xffff0000));
  low = {_mm256_castsi256_ps(_mm256_slli_epi32(x, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(y, 16))};
  high = {_mm256_castsi256_ps(_mm256_and_si256(x, top)), _mm256_castsi256_ps(_mm256_and_si256(y, top))};
}
