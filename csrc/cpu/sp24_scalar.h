// sp24_avx512.h in plain C++.
struct Halves {
  uint16_t v[32];
};
using Lanes32 = uint32_t;
SK_INLINE Lanes32 both_of(Lanes32 a, Lanes32 b) { return a & b; }
SK_INLINE Lanes32 any_of(Lanes32 a, Lanes32 b) { return a | b; }
SK_INLINE Lanes32 none_of(Lanes32 a) { return ~a; }
SK_INLINE Lanes32 lanes_from_bits(uint32_t m) { return m; }
SK_INLINE Halves splat16(uint16_t x) {
  Halves r;
  for (int k = 0; k < 32; ++k) r.v[k] = x;
  return r;
}
SK_INLINE Halves load32(const uint16_t* at) {
  Halves r;
  std::memcpy(r.v, at, 64);
  return r;
}
SK_INLINE void store32(uint16_t* at, Halves a) { std::memcpy(at, a.v, 64); }
SK_INLINE Halves operator&(Halves a, Halves b) {
  for (int k = 0; k < 32; ++k) a.v[k] &= b.v[k];
  return a;
}
SK_INLINE Halves operator|(Halves a, Halves b) {
  for (int k = 0; k < 32; ++k) a.v[k] |= b.v[k];
  return a;
}
SK_INLINE Halves operator-(Halves a, Halves b) {
  for (int k = 0; k < 32; ++k) a.v[k] = static_cast<uint16_t>(a.v[k] - b.v[k]);
  return a;
}
SK_INLINE Halves smaller(Halves a, Halves b) {
  for (int k = 0; k < 32; ++k) a.v[k] = std::min(a.v[k], b.v[k]);
  return a;
}
SK_INLINE Halves larger(Halves a, Halves b) {
  for (int k = 0; k < 32; ++k) a.v[k] = std::max(a.v[k], b.v[k]);
  return a;
}
SK_INLINE Lanes32 greater16(Halves a, Halves b) {
  Lanes32 m = 0;
  for (int k = 0; k < 32; ++k) m |= static_cast<Lanes32>(a.v[k] > b.v[k]) << k;
  return m;
}
SK_INLINE Halves select16(Lanes32 m, Halves inside, Halves outside) {
  for (int k = 0; k < 32; ++k) outside.v[k] = (m >> k) & 1 ? inside.v[k] : outside.v[k];
  return outside;
}
SK_INLINE void load4(const uint16_t* one, const uint16_t* two, Halves (&a)[4]) {
  for (int k = 0; k < 64; ++k) a[k % 4].v[k / 4] = one[k], a[k % 4].v[16 + k / 4] = two[k];
}
SK_INLINE void copy_line(uint16_t* to, const uint16_t* from, bool) { std::memcpy(to, from, 64); }
SK_INLINE void finish_stores() {}
SK_INLINE void store4(uint16_t* one, uint16_t* two, const Halves (&a)[4], bool) {
  for (int k = 0; k < 64; ++k) one[k] = a[k % 4].v[k / 4], two[k] = a[k % 4].v[16 + k / 4];
}
SK_INLINE void load2(const uint16_t* one, const uint16_t* two, Halves& a, Halves& b) {
  for (int k = 0; k < 16; ++k) a.v[k] = one[2 * k], b.v[k] = one[2 * k + 1], a.v[16 + k] = two[2 * k], b.v[16 + k] = two[2 * k + 1];
}
SK_INLINE void store2(uint16_t* one, uint16_t* two, Halves a, Halves b, bool) {
  for (int k = 0; k < 16; ++k) one[2 * k] = a.v[k], one[2 * k + 1] = b.v[k], two[2 * k] = a.v[16 + k], two[2 * k + 1] = b.v[16 + k];
}

SK_INLINE void store_nibbles(uint16_t* one, uint16_t* two, Halves nibble) {
  for (int w = 0; w < 4; ++w) {
    one[w] = two[w] = 0;
    for (int k = 0; k < 4; ++k) {
      one[w] = static_cast<uint16_t>(one[w] | nibble.v[4 * w + k] << 4 * k);
      two[w] = static_cast<uint16_t>(two[w] | nibble.v[16 + 4 * w + k] << 4 * k);
    }
  }
}
SK_INLINE Halves next_nibble(Halves words, Halves nibble) {
  for (int k = 0; k < 32; ++k) words.v[k] = static_cast<uint16_t>(words.v[k] >> 4 | nibble.v[k] << 12);
  return words;
}
SK_INLINE uint32_t every_fourth(uint64_t one, uint64_t two, int j) {
  uint32_t r = 0;
  for (int k = 0; k < 16; ++k) r |= static_cast<uint32_t>(one >> (4 * k + j) & 1) << k | static_cast<uint32_t>(two >> (4 * k + j) & 1) << (16 + k);
  return r;
}
