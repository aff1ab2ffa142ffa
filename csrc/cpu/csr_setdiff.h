// One row of the set difference, without a sort: the samples' columns are marked in a map of bytes, the active columns are
// wiped from it, and what is left is read off in order. Where samples are few for the width, a bit per 64 columns says where to
// look. Bytes and not bits, since marking a bit must wait for the mark before it in the same word.
// Per row: one store per sample and active column and cols / 64 or cols / 4096 steps of the walk.

// The columns marked in 64 bytes, which are cleared.
SK_INLINE int32_t* take_block(uint8_t* marks, int64_t block, int32_t* out) {
  uint64_t left = bits_of_64_bools(marks + 64 * block);
  if (!left) return out;
  std::memset(marks + 64 * block, 0, 64);
  for (; left; left &= left - 1) *out++ = static_cast<int32_t>(64 * block + __builtin_ctzll(left));
  return out;
}

// Writes the new columns over the samples and returns how many there are. `marks` [cols, rounded up to 64] and `summary` [one bit
// per 64 marks] are zero before and after.
int64_t new_columns(int32_t* samples, int64_t count, const int32_t* active, int64_t actives, uint8_t* marks, uint64_t* summary, int64_t cols) {
  int32_t* out = samples;
  const int64_t blocks = (cols + 63) / 64;
  const bool few = blocks > 4 * count;
  for (int64_t i = 0; i < count; ++i) marks[samples[i]] = 1;
  for (int64_t i = 0; few && i < count; ++i) summary[samples[i] >> 12] |= uint64_t(1) << ((samples[i] >> 6) & 63);
  for (int64_t i = 0; i < actives; ++i) marks[active[i]] = 0;
  if (!few) {
    for (int64_t b = 0; b < blocks; ++b) out = take_block(marks, b, out);
    return out - samples;
  }
  for (int64_t w = 0; w < (blocks + 63) / 64; ++w) {
    for (uint64_t left = summary[w]; left; left &= left - 1) out = take_block(marks, 64 * w + __builtin_ctzll(left), out);
    summary[w] = 0;
  }
  return out - samples;
}
