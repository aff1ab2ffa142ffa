// Sixteen rows of sixteen lanes at once, and two bfloat16 numbers in one 32-bit word.

SK_INLINE void transpose(F32 (&r)[16]) {
  __m512 a[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(r[i].v, r[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(r[i].v, r[i + 1].v);
  }
  __m512 b[16];
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      b[i + 2 * k] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a[i + k]), _mm512_castps_pd(a[i + 2 + k])));
      b[i + 2 * k + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a[i + k]), _mm512_castps_pd(a[i + 2 + k])));
    }
  }
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {  // b[4 i + k] holds columns k, k + 4, k + 8, k + 12 of rows 4 i .. 4 i + 3
    const __m512 low = _mm512_shuffle_f32x4(b[k], b[4 + k], 0x88), high = _mm512_shuffle_f32x4(b[k], b[4 + k], 0xdd);
    const __m512 low2 = _mm512_shuffle_f32x4(b[8 + k], b[12 + k], 0x88), high2 = _mm512_shuffle_f32x4(b[8 + k], b[12 + k], 0xdd);
    r[k].v = _mm512_shuffle_f32x4(low, low2, 0x88);
    r[k + 8].v = _mm512_shuffle_f32x4(low, low2, 0xdd);
    r[k + 4].v = _mm512_shuffle_f32x4(high, high2, 0x88);
    r[k + 12].v = _mm512_shuffle_f32x4(high, high2, 0xdd);
  }
}

// Lane k is the sum of r[k]: lanes 8 apart first, then 4, 2 and 1.
SK_INLINE F32 sums_of_rows(const F32 (&r)[16]) {
  __m512 half[8], quarter[4], eighth[2];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {  // input slot s = 4 i + j is row 4 j + i, which puts the sums in order at the end
    const __m512 x = r[4 * ((2 * i) & 3) + ((2 * i) >> 2)].v, y = r[4 * ((2 * i + 1) & 3) + ((2 * i + 1) >> 2)].v;
    half[i] = _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xee));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
    quarter[i] = _mm512_add_ps(_mm512_shuffle_f32x4(half[2 * i], half[2 * i + 1], 0x88), _mm512_shuffle_f32x4(half[2 * i], half[2 * i + 1], 0xdd));
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const __m512d x = _mm512_castps_pd(quarter[2 * i]), y = _mm512_castps_pd(quarter[2 * i + 1]);
    eighth[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
  }
  return {_mm512_add_ps(_mm512_shuffle_ps(eighth[0], eighth[1], 0x88), _mm512_shuffle_ps(eighth[0], eighth[1], 0xdd))};
}

SK_INLINE void store_pairs(uint32_t* at, F32 low, F32 high) {  // both must be bfloat16 numbers
  const __m512i top = _mm512_and_si512(_mm512_castps_si512(high.v), _mm512_set1_epi32(static_cast<int>(0xffff0000)));
  _mm512_storeu_si512(at, _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(low.v), 16), top));
}
SK_INLINE void load_pairs(const uint32_t* at, F32& low, F32& high) {
  const __m512i words = _mm512_loadu_si512(at);
  low.v = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
  high.v = _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
}
