// Four 32-bit words in the low halves of 64-bit lanes.
constexpr int kWordLanes = 4;
struct Words {
  __m256i v;
};
SK_INLINE Words splat_words(uint64_t x) { return {_mm256_set1_epi64x(static_cast<int64_t>(x))}; }
SK_INLINE Words words_from(uint64_t x) { return {_mm256_add_epi64(splat_words(x).v, _mm256_setr_epi64x(0, 1, 2, 3))}; }
SK_INLINE Words multiply_words(Words a, Words b) { return {_mm256_mul_epu32(a.v, b.v)}; }
SK_INLINE Words high_words(Words a) { return {_mm256_srli_epi64(a.v, 32)}; }
SK_INLINE Words operator+(Words a, Words b) { return {_mm256_add_epi64(a.v, b.v)}; }
SK_INLINE Words operator^(Words a, Words b) { return {_mm256_xor_si256(a.v, b.v)}; }
SK_INLINE Words operator&(Words a, Words b) { return {_mm256_and_si256(a.v, b.v)}; }
SK_INLINE void store(uint64_t* at, Words a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), a.v); }
