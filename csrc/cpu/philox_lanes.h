// Philox over several numbers at once. Words stand in the low halves of 64-bit lanes, so that one multiplication gives both
// halves of a product; what is left in the high halves is never read. The same bits as common/philox.h.
#if defined(__AVX512F__) && defined(__AVX512DQ__)
constexpr int kWordLanes = 8;
struct Words {
  __m512i v;
};
SK_INLINE Words words(uint64_t x) { return {_mm512_set1_epi64(static_cast<int64_t>(x))}; }
SK_INLINE Words count_from(uint64_t x) { return {_mm512_add_epi64(words(x).v, _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7))}; }
SK_INLINE Words multiply(Words a, Words b) { return {_mm512_mul_epu32(a.v, b.v)}; }
SK_INLINE Words operator+(Words a, Words b) { return {_mm512_add_epi64(a.v, b.v)}; }
SK_INLINE Words operator^(Words a, Words b) { return {_mm512_xor_si512(a.v, b.v)}; }
SK_INLINE Words operator&(Words a, Words b) { return {_mm512_and_si512(a.v, b.v)}; }
SK_INLINE Words high(Words a) { return {_mm512_srli_epi64(a.v, 32)}; }
SK_INLINE void store(uint64_t* at, Words a) { _mm512_storeu_si512(at, a.v); }
#elif defined(__AVX2__)
constexpr int kWordLanes = 4;
struct Words {
  __m256i v;
};
SK_INLINE Words words(uint64_t x) { return {_mm256_set1_epi64x(static_cast<int64_t>(x))}; }
SK_INLINE Words count_from(uint64_t x) { return {_mm256_add_epi64(words(x).v, _mm256_setr_epi64x(0, 1, 2, 3))}; }
SK_INLINE Words multiply(Words a, Words b) { return {_mm256_mul_epu32(a.v, b.v)}; }
SK_INLINE Words operator+(Words a, Words b) { return {_mm256_add_epi64(a.v, b.v)}; }
SK_INLINE Words operator^(Words a, Words b) { return {_mm256_xor_si256(a.v, b.v)}; }
SK_INLINE Words operator&(Words a, Words b) { return {_mm256_and_si256(a.v, b.v)}; }
SK_INLINE Words high(Words a) { return {_mm256_srli_epi64(a.v, 32)}; }
SK_INLINE void store(uint64_t* at, Words a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), a.v); }
#else
constexpr int kWordLanes = 1;
struct Words {
  uint64_t v;
};
SK_INLINE Words words(uint64_t x) { return {x}; }
SK_INLINE Words count_from(uint64_t x) { return {x}; }
SK_INLINE Words multiply(Words a, Words b) { return {static_cast<uint64_t>(static_cast<uint32_t>(a.v)) * static_cast<uint32_t>(b.v)}; }
SK_INLINE Words operator+(Words a, Words b) { return {a.v + b.v}; }
SK_INLINE Words operator^(Words a, Words b) { return {a.v ^ b.v}; }
SK_INLINE Words operator&(Words a, Words b) { return {a.v & b.v}; }
SK_INLINE Words high(Words a) { return {a.v >> 32}; }
SK_INLINE void store(uint64_t* at, Words a) { *at = a.v; }
#endif

struct WordLanes4 {
  Words a, b, c, d;
};

SK_INLINE WordLanes4 random_word_lanes(uint64_t seed, uint64_t number, Purpose purpose) {
  const Words first = count_from(number), m0 = words(kPhiloxMultiplier0), m1 = words(kPhiloxMultiplier1);
  WordLanes4 x{first, high(first), words(0), words(static_cast<uint32_t>(purpose))};
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int turn = 0; turn < kPhiloxRounds; ++turn) {
    const Words p = multiply(x.a, m0), q = multiply(x.c, m1);
    x = {high(q) ^ x.b ^ words(key0), q, high(p) ^ x.d ^ words(key1), p};
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  return x;
}

// The high 64 bits of a 64-bit number, given by its words, times y.
SK_INLINE Words multiply_high_lanes(Words low, Words upper, uint64_t y) {
  const Words y0 = words(y), y1 = words(y >> 32), mask = words(0xffffffff);
  const Words a = multiply(upper, y0), b = multiply(low, y1);
  const Words carry = high(multiply(low, y0)) + (a & mask) + (b & mask);
  return multiply(upper, y1) + high(a) + high(b) + high(carry);
}
