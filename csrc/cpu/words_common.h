// Philox over several numbers at once: the same bits as common/philox.h. Words stand in the low halves of 64-bit lanes, so that
// one multiplication gives both halves of a product; what is left in the high halves is never read.
struct WordLanes4 {
  Words a, b, c, d;
};

SK_INLINE WordLanes4 random_word_lanes(uint64_t seed, uint64_t number, Purpose purpose) {
  const Words first = words_from(number), m0 = splat_words(kPhiloxMultiplier0), m1 = splat_words(kPhiloxMultiplier1);
  WordLanes4 x{first, high_words(first), splat_words(0), splat_words(static_cast<uint32_t>(purpose))};
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int turn = 0; turn < kPhiloxRounds; ++turn) {
    const Words p = multiply_words(x.a, m0), q = multiply_words(x.c, m1);
    x = {high_words(q) ^ x.b ^ splat_words(key0), q, high_words(p) ^ x.d ^ splat_words(key1), p};
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  return x;
}

// The high 64 bits of a 64-bit number, given by its words, times y.
SK_INLINE Words multiply_high_lanes(Words low, Words high, uint64_t y) {
  const Words y0 = splat_words(y), y1 = splat_words(y >> 32), mask = splat_words(0xffffffff);
  const Words a = multiply_words(high, y0), b = multiply_words(low, y1);
  const Words carry = high_words(multiply_words(low, y0)) + (a & mask) + (b & mask);
  return multiply_words(high, y1) + high_words(a) + high_words(b) + high_words(carry);
}
