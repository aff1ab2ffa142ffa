// One row of the set difference, without a sort: the samples' columns are marked in a map of bytes, the active columns are
// wiped from it, and what is left is read off in order. Where samples are few for the width, a bit per 64 columns says where to
// look. Bytes and not bits, since marking a bit must wait for the mark before it in the same word.
// Per row: one store per sample and active column and cols / 64 or cols / 4096 steps of the walk.

// The columns marked in 64 bytes, which are cleared. A block that holds many is read off sixteen columns at a time; nothing is
// written from `end` on.
template <bool many>
SK_INLINE int32_t* take_block(uint8_t* marks, int64_t block, int32_t* out, const int32_t* end) {
  static const uint32_t iota[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  uint64_t left = bits_of_64_bools(marks + 64 * block);
  if (!left) return out;
  std::memset(marks + 64 * block, 0, 64);
  int32_t first = static_cast<int32_t>(64 * block);
  for (; many && left && end - out >= 64; left >>= 16, first += 16) {
    const Mask16 here = static_cast<Mask16>(left);
    compress(reinterpret_cast<uint32_t*>(out), here, load(iota) + splat(static_cast<uint32_t>(first)));
    out += __builtin_popcount(here);
  }
  for (; left; left &= left - 1) *out++ = first + __builtin_ctzll(left);
  return out;
}

// Writes the new columns over the samples and returns how many there are. `marks` [cols, rounded up to 64] and `summary` [one bit
// per 64 marks] are zero before and after.
int64_t new_columns(int32_t* samples, int64_t count, const int32_t* active, int64_t actives, uint8_t* marks, uint64_t* summary, int64_t cols) {
  int32_t* out = samples;
  const int32_t* end = samples + count;
  const int64_t blocks = (cols + 63) / 64;
  const bool few = blocks > 4 * count;
  for (int64_t i = 0; i < count; ++i) marks[samples[i]] = 1;
  for (int64_t i = 0; few && i < count; ++i) summary[samples[i] >> 12] |= uint64_t(1) << ((samples[i] >> 6) & 63);
  for (int64_t i = 0; i < actives; ++i) marks[active[i]] = 0;
  if (!few) {
    for (int64_t b = 0; b < blocks; ++b) out = take_block<true>(marks, b, out, end);
    return out - samples;
  }
  for (int64_t w = 0; w < (blocks + 63) / 64; ++w) {
    for (uint64_t left = summary[w]; left; left &= left - 1) out = take_block<false>(marks, 64 * w + __builtin_ctzll(left), out, end);
    summary[w] = 0;
  }
  return out - samples;
}
