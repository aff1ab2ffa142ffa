// What packing needs of 16-bit lanes: which lanes hold, groups of four and pairs taken apart and put together, bits spread over words.
using Lanes16 = Mask16;
SK_INLINE Lanes16 both_of(Lanes16 a, Lanes16 b) { return a & b; }
SK_INLINE Lanes16 any_of(Lanes16 a, Lanes16 b) { return a | b; }
SK_INLINE Lanes16 none_of(Lanes16 a) { return static_cast<Lanes16>(~a); }
SK_INLINE Lanes16 lanes_from_bits(Mask16 m) { return m; }
SK_INLINE Mask16 bits_of_lanes(Lanes16 a) { return a; }
SK_INLINE U16 splat16(uint16_t x) { return {_mm256_set1_epi16(static_cast<int16_t>(x))}; }
SK_INLINE U16 operator&(U16 a, U16 b) { return {_mm256_and_si256(a.v, b.v)}; }
SK_INLINE U16 operator|(U16 a, U16 b) { return {_mm256_or_si256(a.v, b.v)}; }
SK_INLINE U16 operator+(U16 a, U16 b) { return {_mm256_add_epi16(a.v, b.v)}; }
SK_INLINE Lanes16 greater16(U16 a, U16 b) { return _mm256_cmpgt_epi16_mask(a.v, b.v); }  // below 2^15
SK_INLINE U16 select16(Lanes16 m, U16 inside, U16 outside) { return {_mm256_mask_mov_epi16(outside.v, m, inside.v)}; }

SK_INLINE __m512i wide16(U16 a, U16 b) { return _mm512_inserti64x4(_mm512_castsi256_si512(a.v), b.v, 1); }
SK_INLINE U16 low16(__m512i a) { return {_mm512_castsi512_si256(a)}; }
SK_INLINE U16 high16(__m512i a) { return {_mm512_extracti64x4_epi64(a, 1)}; }
struct Order32 {
  alignas(64) uint16_t at[32];
};
// Element k of the result is element `step * (k % 16) + k / 16 + first`, or the inverse of the orders that this gives.
constexpr Order32 apart(int step, int first) {
  Order32 o = {};
  for (int k = 0; k < 32; ++k) o.at[k] = static_cast<uint16_t>(step * (k % 16) + k / 16 + first);
  return o;
}
constexpr Order32 together(int step, int first) {
  Order32 o = {};
  for (int k = 0; k < 32; ++k) o.at[k] = static_cast<uint16_t>((k + first) % step * 16 + (k + first) / step);
  return o;
}
constexpr Order32 kApart4[2] = {apart(4, 0), apart(4, 2)}, kTogether4[2] = {together(4, 0), together(4, 32)}, kApart2 = apart(2, 0),
                  kTogether2 = together(2, 0);
SK_INLINE __m512i order32(const Order32& o) { return _mm512_load_si512(o.at); }

SK_INLINE void load4(const uint16_t* at, U16 (&a)[4]) {
  const __m512i x = _mm512_loadu_si512(at), y = _mm512_loadu_si512(at + 32);
  const __m512i front = _mm512_permutex2var_epi16(x, order32(kApart4[0]), y), back = _mm512_permutex2var_epi16(x, order32(kApart4[1]), y);
  a[0] = low16(front), a[1] = high16(front), a[2] = low16(back), a[3] = high16(back);
}
SK_INLINE void store4(uint16_t* at, const U16 (&a)[4]) {
  const __m512i front = wide16(a[0], a[1]), back = wide16(a[2], a[3]);
  _mm512_storeu_si512(at, _mm512_permutex2var_epi16(front, order32(kTogether4[0]), back));
  _mm512_storeu_si512(at + 32, _mm512_permutex2var_epi16(front, order32(kTogether4[1]), back));
}
SK_INLINE void load2(const uint16_t* at, U16& a, U16& b) {
  const __m512i x = _mm512_permutexvar_epi16(order32(kApart2), _mm512_loadu_si512(at));
  a = low16(x), b = high16(x);
}
SK_INLINE void store2(uint16_t* at, U16 a, U16 b) { _mm512_storeu_si512(at, _mm512_permutexvar_epi16(order32(kTogether2), wide16(a, b))); }

// Bit k of m becomes bit 4 k + j, and back.
SK_INLINE uint64_t spread_bits(Mask16 m, int j) { return _pdep_u64(m, 0x1111111111111111u << j); }
SK_INLINE Mask16 gather_bits(uint64_t m, int j) { return static_cast<Mask16>(_pext_u64(m, 0x1111111111111111u << j)); }
