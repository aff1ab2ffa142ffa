// Sixteen rows of sixteen lanes at once, and two bfloat16 numbers in one 32-bit word: the meaning of the other variants.

SK_INLINE void transpose(F32 (&r)[16]) {
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < i; ++k) std::swap(r[i].v[k], r[k].v[i]);
}

// Lane k is the sum of r[k]: lanes 8 apart first, then 4, 2 and 1.
SK_INLINE F32 sums_of_rows(const F32 (&r)[16]) {
  F32 sums;
  for (int k = 0; k < 16; ++k) {
    F32 x = r[k];
    for (int step = 8; step > 0; step /= 2)
      for (int i = 0; i < step; ++i) x.v[i] += x.v[i + step];
    sums.v[k] = x.v[0];
  }
  return sums;
}

SK_INLINE void store_pairs(uint32_t* at, F32 low, F32 high) {  // both must be bfloat16 numbers
  for (int k = 0; k < 16; ++k) {
    uint32_t bottom, top;
    std::memcpy(&bottom, &low.v[k], 4);
    std::memcpy(&top, &high.v[k], 4);
    at[k] = bottom >> 16 | (top & 0xffff0000u);
  }
}
SK_INLINE void load_pairs(const uint32_t* at, F32& low, F32& high) {
  for (int k = 0; k < 16; ++k) {
    const uint32_t bottom = at[k] << 16, top = at[k] & 0xffff0000u;
    std::memcpy(&low.v[k], &bottom, 4);
    std::memcpy(&high.v[k], &top, 4);
  }
}
