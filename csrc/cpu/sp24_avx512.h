// What packing needs of 32 lanes of 16 bits: which lanes hold, groups of four and pairs of two rows taken apart and put together. A
// vector of lanes has sixteen groups of one row in its lower half, sixteen of another in its upper.
struct Halves {
  __m512i v;
};
using Lanes32 = __mmask32;
// Operators would send masks through the general registers and back.
SK_INLINE Lanes32 both_of(Lanes32 a, Lanes32 b) { return _kand_mask32(a, b); }
SK_INLINE Lanes32 any_of(Lanes32 a, Lanes32 b) { return _kor_mask32(a, b); }
SK_INLINE Lanes32 none_of(Lanes32 a) { return _knot_mask32(a); }
SK_INLINE Lanes32 lanes_from_bits(uint32_t m) { return m; }
SK_INLINE Halves splat16(uint16_t x) { return {_mm512_set1_epi16(static_cast<int16_t>(x))}; }
SK_INLINE Halves load32(const uint16_t* at) { return {_mm512_loadu_si512(at)}; }
SK_INLINE void store32(uint16_t* at, Halves a) { _mm512_storeu_si512(at, a.v); }
SK_INLINE Halves operator&(Halves a, Halves b) { return {_mm512_and_si512(a.v, b.v)}; }
SK_INLINE Halves operator|(Halves a, Halves b) { return {_mm512_or_si512(a.v, b.v)}; }
SK_INLINE Halves operator-(Halves a, Halves b) { return {_mm512_sub_epi16(a.v, b.v)}; }
SK_INLINE Halves smaller(Halves a, Halves b) { return {_mm512_min_epu16(a.v, b.v)}; }
SK_INLINE Halves larger(Halves a, Halves b) { return {_mm512_max_epu16(a.v, b.v)}; }
SK_INLINE Lanes32 greater16(Halves a, Halves b) { return _mm512_cmpgt_epi16_mask(a.v, b.v); }  // below 2^15
SK_INLINE Halves select16(Lanes32 m, Halves inside, Halves outside) { return {_mm512_mask_mov_epi16(outside.v, m, inside.v)}; }

struct Order32 {
  alignas(64) uint16_t at[32];
};
// Element k is number step * (k % 16) + k / 16 + first; and (k + first) % step * 16 + (k + first) / step, which puts back.
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
// Element k of two vectors in turn, from the lower or the upper half of each.
constexpr Order32 in_turn(int first) {
  Order32 o = {};
  for (int k = 0; k < 32; ++k) o.at[k] = static_cast<uint16_t>(k % 2 * 32 + k / 2 + first);
  return o;
}
constexpr Order32 kApart4[2] = {apart(4, 0), apart(4, 2)}, kTogether4[2] = {together(4, 0), together(4, 32)}, kApart2 = apart(2, 0),
                  kInTurn[2] = {in_turn(0), in_turn(16)};
SK_INLINE __m512i order32(const Order32& o) { return _mm512_load_si512(o.at); }
SK_INLINE __m512i lower_halves(__m512i a, __m512i b) { return _mm512_shuffle_i64x2(a, b, 0x44); }
SK_INLINE __m512i upper_halves(__m512i a, __m512i b) { return _mm512_shuffle_i64x2(a, b, 0xee); }

// A whole aligned line can go past the cache, which then need not read it first.
SK_INLINE void put(uint16_t* at, __m512i x, bool past_cache) {
  if (past_cache) _mm512_stream_si512(reinterpret_cast<__m512i*>(at), x);
  else _mm512_storeu_si512(at, x);
}
SK_INLINE void copy_line(uint16_t* to, const uint16_t* from, bool past_cache) { put(to, _mm512_loadu_si512(from), past_cache); }
SK_INLINE void finish_stores() { _mm_sfence(); }
// 64 elements of two rows: element j of their groups is a[j].
SK_INLINE void load4(const uint16_t* one, const uint16_t* two, Halves (&a)[4]) {
  const __m512i p = _mm512_loadu_si512(one), q = _mm512_loadu_si512(one + 32), r = _mm512_loadu_si512(two), s = _mm512_loadu_si512(two + 32);
#pragma GCC unroll 4
  for (int k = 0; k < 2; ++k) {
    const __m512i order = order32(kApart4[k]), x = _mm512_permutex2var_epi16(p, order, q), y = _mm512_permutex2var_epi16(r, order, s);
    a[2 * k].v = lower_halves(x, y);
    a[2 * k + 1].v = upper_halves(x, y);
  }
}
SK_INLINE void store4(uint16_t* one, uint16_t* two, const Halves (&a)[4], bool past_cache) {
  const __m512i order[2] = {order32(kTogether4[0]), order32(kTogether4[1])};
  const __m512i p = lower_halves(a[0].v, a[1].v), q = lower_halves(a[2].v, a[3].v);
  const __m512i r = upper_halves(a[0].v, a[1].v), s = upper_halves(a[2].v, a[3].v);
#pragma GCC unroll 4
  for (int k = 0; k < 2; ++k) {
    put(one + 32 * k, _mm512_permutex2var_epi16(p, order[k], q), past_cache);
    put(two + 32 * k, _mm512_permutex2var_epi16(r, order[k], s), past_cache);
  }
}
// 32 values of two rows: the firsts of their pairs and the seconds.
SK_INLINE void load2(const uint16_t* one, const uint16_t* two, Halves& a, Halves& b) {
  const __m512i x = _mm512_permutexvar_epi16(order32(kApart2), _mm512_loadu_si512(one));
  const __m512i y = _mm512_permutexvar_epi16(order32(kApart2), _mm512_loadu_si512(two));
  a.v = lower_halves(x, y);
  b.v = upper_halves(x, y);
}
SK_INLINE void store2(uint16_t* one, uint16_t* two, Halves a, Halves b, bool past_cache) {
  put(one, _mm512_permutex2var_epi16(a.v, order32(kInTurn[0]), b.v), past_cache);
  put(two, _mm512_permutex2var_epi16(a.v, order32(kInTurn[1]), b.v), past_cache);
}

// The nibbles of sixteen groups as four words, for two rows.
SK_INLINE void store_nibbles(uint16_t* one, uint16_t* two, Halves nibble) {
  const __m512i bytes = _mm512_madd_epi16(nibble.v, _mm512_set1_epi32(16 << 16 | 1));  // two nibbles to 32 bits
  const __m128i words = _mm512_cvtepi64_epi16(_mm512_or_si512(bytes, _mm512_srli_epi64(bytes, 24)));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(one), words);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(two), _mm_unpackhi_epi64(words, words));
}
// One more nibble on top; what was there moves down.
SK_INLINE Halves next_nibble(Halves words, Halves nibble) {
  return {_mm512_or_si512(_mm512_srli_epi16(words.v, 4), _mm512_slli_epi16(nibble.v, 12))};
}
SK_INLINE uint32_t every_fourth(uint64_t one, uint64_t two, int j) {
  const uint64_t which = 0x1111111111111111u << j;
  return static_cast<uint32_t>(_pext_u64(one, which) | _pext_u64(two, which) << 16);
}
