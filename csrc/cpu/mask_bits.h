// bits[w] = sum over k of mask[32 w + k] << k, its inverse, and population counts of masks in either form.
// 64 elements at a time, pieces of 32K elements (or words) over the threads.
// Bytes: pack and unpack 1 + 1/8 per element, counts 1 or 1/8 per element and mask; bandwidth-bound.
// Padding bits of the last word are written as 0, so counts may take whole words.

// Words of the elements [begin, end); begin is a multiple of 64, and only the last word may be partly filled.
inline void pack_mask_piece(const uint8_t* mask, uint32_t* bits, int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; i + 64 <= end; i += 64) {
    const uint64_t word = bits_of_64_bools(mask + i);
    std::memcpy(bits + (i >> 5), &word, 8);
  }
  if (i < end) {
    uint8_t tail[64] = {};
    std::memcpy(tail, mask + i, end - i);
    const uint64_t word = bits_of_64_bools(tail);
    std::memcpy(bits + (i >> 5), &word, end - i > 32 ? 8 : 4);
  }
}

inline void unpack_mask_piece(const uint32_t* bits, uint8_t* mask, int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; i + 64 <= end; i += 64) {
    uint64_t word;
    std::memcpy(&word, bits + (i >> 5), 8);
    store_64_bools(mask + i, word);
  }
  if (i < end) {
    uint64_t word = 0;
    std::memcpy(&word, bits + (i >> 5), end - i > 32 ? 8 : 4);
    uint8_t tail[64];
    store_64_bools(tail, word);
    std::memcpy(mask + i, tail, end - i);
  }
}

// Counts of 64 elements into |a|, |b|, |a and b|; the fourth column follows from them.
SK_INLINE void count_64(uint64_t a, uint64_t b, MaskCounts& counts) {
  counts.a += __builtin_popcountll(a);
  counts.b += __builtin_popcountll(b);
  counts.both += __builtin_popcountll(a & b);
}

SK_INLINE uint64_t word_64(const uint32_t* at) {
  uint64_t word;
  std::memcpy(&word, at, 8);
  return word;
}

// `b` may be null: its counts stay 0. The test is outside the loops, which then count one stream only.
inline MaskCounts count_bools_piece(const uint8_t* a, const uint8_t* b, int64_t begin, int64_t end) {
  MaskCounts counts;
  int64_t i = begin;
  if (b) {
    for (; i + 64 <= end; i += 64) count_64(bits_of_64_bools(a + i), bits_of_64_bools(b + i), counts);
  } else {
    for (; i + 64 <= end; i += 64) counts.a += __builtin_popcountll(bits_of_64_bools(a + i));
  }
  for (; i < end; ++i) count_64(a[i] != 0, b && b[i] != 0, counts);
  return counts;
}

inline MaskCounts count_words_piece(const uint32_t* a, const uint32_t* b, int64_t begin, int64_t end) {
  MaskCounts counts;
  int64_t i = begin;
  if (b) {
    for (; i + 2 <= end; i += 2) count_64(word_64(a + i), word_64(b + i), counts);
  } else {
    for (; i + 8 <= end; i += 8)
      for (int k = 0; k < 8; k += 2) counts.a += __builtin_popcountll(word_64(a + i + k));
  }
  for (; i < end; ++i) count_64(a[i], b ? b[i] : 0, counts);
  return counts;
}
