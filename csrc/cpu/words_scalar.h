// One 32-bit word in the low half of 64 bits.
constexpr int kWordLanes = 1;
struct Words {
  uint64_t v;
};
SK_INLINE Words splat_words(uint64_t x) { return {x}; }
SK_INLINE Words words_from(uint64_t x) { return {x}; }
SK_INLINE Words multiply_words(Words a, Words b) { return {static_cast<uint64_t>(static_cast<uint32_t>(a.v)) * static_cast<uint32_t>(b.v)}; }
SK_INLINE Words high_words(Words a) { return {a.v >> 32}; }
SK_INLINE Words operator+(Words a, Words b) { return {a.v + b.v}; }
SK_INLINE Words operator^(Words a, Words b) { return {a.v ^ b.v}; }
SK_INLINE Words operator&(Words a, Words b) { return {a.v & b.v}; }
SK_INLINE void store(uint64_t* at, Words a) { *at = a.v; }
