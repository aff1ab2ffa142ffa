// The same for fp64 lanes (for tests, so plain loops).
SK_INLINE void transpose(F64 (&r)[16]) {
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < i; ++k) std::swap(r[i].v[k], r[k].v[i]);
}
SK_INLINE F64 sums_of_rows(const F64 (&r)[16]) {
  F64 sums;
  for (int k = 0; k < 16; ++k) {
    F64 x = r[k];
    for (int step = 8; step > 0; step /= 2)
      for (int i = 0; i < step; ++i) x.v[i] += x.v[i + step];
    sums.v[k] = x.v[0];
  }
  return sums;
}
