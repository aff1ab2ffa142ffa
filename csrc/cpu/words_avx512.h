// Eight 32-bit words in the low halves of 64-bit lanes.
constexpr int kWordLanes = 8;
struct Words {
  __m512i v;
};
SK_INLINE Words splat_words(uint64_t x) { return {_mm512_set1_epi64(static_cast<int64_t>(x))}; }
SK_INLINE Words words_from(uint64_t x) { return {_mm512_add_epi64(splat_words(x).v, _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7))}; }
SK_INLINE Words multiply_words(Words a, Words b) { return {_mm512_mul_epu32(a.v, b.v)}; }
SK_INLINE Words high_words(Words a) { return {_mm512_srli_epi64(a.v, 32)}; }
SK_INLINE Words operator+(Words a, Words b) { return {_mm512_add_epi64(a.v, b.v)}; }
SK_INLINE Words operator^(Words a, Words b) { return {_mm512_xor_si512(a.v, b.v)}; }
SK_INLINE Words operator&(Words a, Words b) { return {_mm512_and_si512(a.v, b.v)}; }
SK_INLINE void store(uint64_t* at, Words a) { _mm512_storeu_si512(at, a.v); }
