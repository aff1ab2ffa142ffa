// Sixteen 32-bit keys in one 512-bit register.
struct U32 {
  __m512i v;
};
SK_INLINE U32 splat(uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }
SK_INLINE U32 load(const uint32_t* at) { return {_mm512_loadu_si512(at)}; }
SK_INLINE void store(uint32_t* at, U32 x) { _mm512_storeu_si512(at, x.v); }
SK_INLINE U32 bits_of(F32 x) { return {_mm512_castps_si512(x.v)}; }
SK_INLINE U32 operator+(U32 a, U32 b) { return {_mm512_add_epi32(a.v, b.v)}; }
SK_INLINE U32 operator-(U32 a, U32 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
SK_INLINE U32 operator&(U32 a, U32 b) { return {_mm512_and_si512(a.v, b.v)}; }
SK_INLINE U32 operator^(U32 a, U32 b) { return {_mm512_xor_si512(a.v, b.v)}; }
// All ones where the top bit is set.
SK_INLINE U32 spread_sign(U32 a) { return {_mm512_srai_epi32(a.v, 31)}; }
SK_INLINE Mask16 greater(U32 a, U32 b) { return _mm512_cmpgt_epu32_mask(a.v, b.v); }
SK_INLINE Mask16 equal(U32 a, U32 b) { return _mm512_cmpeq_epu32_mask(a.v, b.v); }
SK_INLINE U32 select(Mask16 m, U32 inside, U32 outside) { return {_mm512_mask_blend_epi32(m, outside.v, inside.v)}; }
// Writes the lanes in `m` one after another; up to 16 lanes of memory may be overwritten. Compressing in a register and
// storing it whole: the store form of the instruction is microcoded on some CPUs.
SK_INLINE void compress(uint32_t* at, Mask16 m, U32 x) { _mm512_storeu_si512(at, _mm512_maskz_compress_epi32(m, x.v)); }
SK_INLINE void store_bools(uint8_t* at, Mask16 m) { _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm_maskz_set1_epi8(m, 1)); }
