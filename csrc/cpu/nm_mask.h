// The n largest of every m: sixteen groups side by side, one lane each, every element ranked by counting those that beat it.
// Groups along the last dimension come in through 16 x 16 transposes, several to a row where m is small; others lie side by
// side already. Bytes per fp32 element: 4 read and 1 written (masks), 4 and 4 (apply); bandwidth-bound to m = 16 or so, then
// by the m^2 / 2 comparisons of a group. The answer is unique, so the hardware does not show.
// Transposable masks: the sums of all 90 patterns of a 4 x 4 block, sixteen blocks at a time.

// Bit c of row r becomes bit r of row c: by quarters, their quarters, and so on.
SK_INLINE void transpose_bits(const Mask16* rows, Mask16* columns) {
  uint64_t w[4];
  std::memcpy(w, rows, 32);
  for (int k = 0; k < 2; ++k) {
    const uint64_t t = ((w[k] >> 8) ^ w[k + 2]) & 0x00ff00ff00ff00ffu;
    w[k] ^= t << 8;
    w[k + 2] ^= t;
  }
  for (int k = 0; k < 4; k += 2) {
    const uint64_t t = ((w[k] >> 4) ^ w[k + 1]) & 0x0f0f0f0f0f0f0f0fu;
    w[k] ^= t << 4;
    w[k + 1] ^= t;
  }
  for (int k = 0; k < 4; ++k) {
    uint64_t t = ((w[k] >> 2) ^ (w[k] >> 32)) & 0x33333333u;
    w[k] ^= t << 2 ^ t << 32;
    t = ((w[k] >> 1) ^ (w[k] >> 16)) & 0x0000555500005555u;
    w[k] ^= t << 1 ^ t << 16;
  }
  std::memcpy(columns, w, 32);
}

// The lanes in which element i is among the n largest of `count`. Equal keys: the lower index first.
// M > 0 says `count` at compile time, so that the keys of a small group stay in registers.
template <int M, class Key>
void keep_largest(const Key* keys, int n, int count, Mask16* kept) {
  const int size = M > 0 ? M : count;
  const U32 one = splat(uint32_t(1)), enough = splat(static_cast<uint32_t>(n));
#pragma GCC unroll 4
  for (int i = 0; i < size; ++i) {
    const auto own = load(keys + 16 * i);
    U32 rank = splat(static_cast<uint32_t>(i));  // all before it, less those that it beats, and those behind that beat it
#pragma GCC unroll 4
    for (int j = 0; j < i; ++j) rank = select(greater(own, load(keys + 16 * j)), rank - one, rank);
#pragma GCC unroll 4
    for (int j = i + 1; j < size; ++j) rank = select(greater(load(keys + 16 * j), own), rank + one, rank);
    kept[i] = greater(enough, rank);
  }
}

// Sixteen lanes of units: where each begins, and how they lie to each other.
struct NmBlock {
  int64_t at[16];
  int count = 0;

  bool side_by_side() const { return count == 16 && at[15] - at[0] == 15; }
};

// Walks the lanes [begin, end) of the units, sixteen at a time; fn(block).
template <class Fn>
SK_INLINE void for_blocks(const NmUnits& u, int64_t begin, int64_t end, const Fn& fn) {
  const int64_t per_line = u.per_line * u.inner;
  int64_t inside = begin % u.inner, unit = begin % per_line / u.inner, line = begin / per_line;
  int64_t place = (line * u.length + u.first + unit * u.width) * u.inner;
  NmBlock block;
  for (int64_t e = begin; e < end; e += 16) {
    block.count = static_cast<int>(std::min<int64_t>(16, end - e));
    for (int k = 0; k < block.count; ++k) {
      block.at[k] = place + inside;
      if (++inside < u.inner) continue;
      inside = 0;
      place += u.width * u.inner;
      if (++unit < u.per_line) continue;
      unit = 0;
      place = (++line * u.length + u.first) * u.inner;
    }
    fn(block);
  }
}

// keys[16 c + lane] of element c of each lane's unit; lanes past the count get keys of zeros.
template <class T>
void load_keys(const NmUnits& u, const NmBlock& block, const T* x, const KeyLanes<KeyFormat<T>>& order, KeyOf<T>* keys) {
  using A = Arith<T>;
  if (u.inner == 1) {
    for (int c = 0; c < u.width; c += 16) {
      const int some = std::min(16, u.width - c);
      Vec<A> r[16];
      if (some == 16 && block.count == 16) {
#pragma GCC unroll 16
        for (int k = 0; k < 16; ++k) r[k] = load(x + block.at[k] + c);
      } else {
        for (int k = 0; k < 16; ++k) r[k] = k < block.count ? load_some(x + block.at[k] + c, some) : splat(A(0));
      }
      transpose(r);
      if (some == 16) {
#pragma GCC unroll 16
        for (int k = 0; k < 16; ++k) store(keys + 16 * (c + k), order.of(r[k]));
      } else {
        for (int k = 0; k < some; ++k) store(keys + 16 * (c + k), order.of(r[k]));
      }
    }
  } else if (block.side_by_side()) {
    for (int c = 0; c < u.width; ++c) store(keys + 16 * c, order.of(load(x + block.at[0] + c * u.inner)));
  } else {
    T lanes[16] = {};
    for (int c = 0; c < u.width; ++c) {
      for (int k = 0; k < block.count; ++k) lanes[k] = x[block.at[k] + c * u.inner];
      store(keys + 16 * c, order.of(load(lanes)));
    }
  }
}

// put(element, lanes' or elements' mask, how many): runs of up to 16 elements that lie side by side in memory.
template <class Put>
SK_INLINE void for_runs(const NmUnits& u, const NmBlock& block, const Mask16* kept, const Put& put) {
  if (u.inner == 1) {
    Mask16 rows[16];
    for (int c = 0; c < u.width; c += 16) {
      transpose_bits(kept + c, rows);
      for (int k = 0; k < block.count; ++k) put(block.at[k] + c, rows[k], std::min(16, u.width - c));
    }
  } else if (block.side_by_side()) {
    for (int c = 0; c < u.width; ++c) put(block.at[0] + c * u.inner, kept[c], 16);
  } else {
    for (int c = 0; c < u.width; ++c)
      for (int k = 0; k < block.count; ++k) put(block.at[k] + c * u.inner, static_cast<Mask16>((kept[c] >> k) & 1), 1);
  }
}

// put(element, mask, how many) for the lanes [begin, end) of the units.
template <class T, class Put>
SK_INLINE void nm_loop(const NmUnits& u, const T* x, bool use_abs, int64_t begin, int64_t end, const Put& put) {
  const KeyLanes<KeyFormat<T>> order(KeyOrder<KeyFormat<T>>(true, use_abs));
  alignas(64) KeyOf<T> keys[16 * 64];
  Mask16 kept[64] = {};
  for_blocks(u, begin, end, [&](const NmBlock& block) {
    load_keys(u, block, x, order, keys);
    for (int c = 0; c < u.width; c += u.m) {
      const int count = std::min(u.m, u.width - c);
      if (count == 4) keep_largest<4>(keys + 16 * c, u.n, 4, kept + c);
      else keep_largest<0>(keys + 16 * c, u.n, count, kept + c);
    }
    for_runs(u, block, kept, put);
  });
}

// Lanes [begin, end) of the units.
template <class T>
void nm_mask_piece(const NmUnits& u, const T* x, bool use_abs, uint8_t* mask, int64_t begin, int64_t end) {
  nm_loop(u, x, use_abs, begin, end, [&](int64_t at, Mask16 kept, int count) {
    if (count == 1) mask[at] = kept & 1;
    else put_mask(1, mask + at, 0, count, kept);
  });
}

template <class T>
void nm_apply_piece(const NmUnits& u, T* x, int64_t begin, int64_t end) {
  nm_loop(u, static_cast<const T*>(x), true, begin, end, [&](int64_t at, Mask16 kept, int count) {
    if (count > 1) keep_lanes(x + at, x + at, kept, count);
    else if (!(kept & 1)) x[at] = T(0);
  });
}

// |x|, with what is too large to be added up safely cut off, and 0 for NaN.
template <class A>
SK_INLINE Vec<A> bounded_magnitude(Vec<A> x) {
  using Format = KeyFormat<A>;
  const Vec<A> size = absolute(x), limit = splat(transposable_limit<A>());
  const auto bits = bits_of(size);
  return select(greater(bits, splat(Format::kInfinity)), splat(A(0)), select(greater(bits, bits_of(limit)), limit, size));
}

// The best of the patterns for each of sixteen blocks; the sum is (row 0 + row 1) + (row 2 + row 3), a row's two elements first.
template <class A>
SK_INLINE U32 best_patterns(const Vec<A> (&x)[4][4]) {
  Vec<A> pair[4][6], half[2][36];
  for (int i = 0; i < 4; ++i)
    for (int p = 0; p < 6; ++p) pair[i][p] = x[i][kKeptPairs[p][0]] + x[i][kKeptPairs[p][1]];
  for (int h = 0; h < 2; ++h)
    for (int p = 0; p < 36; ++p) half[h][p] = pair[2 * h][p / 6] + pair[2 * h + 1][p % 6];
  U32 which = splat(uint32_t(0));
  Vec<A> best = half[0][kTransposable.top[0]] + half[1][kTransposable.bottom[0]];
  for (int p = 1; p < kTransposablePatterns; ++p) {
    const Vec<A> sum = half[0][kTransposable.top[p]] + half[1][kTransposable.bottom[p]];
    const Mask16 better = greater(bits_of(sum), bits_of(best));  // sums are not negative: their bits are in order
    best = select(better, sum, best);
    which = select(better, splat(static_cast<uint32_t>(p)), which);
  }
  return which;
}

// Bands of four rows [begin, end), 256 columns at a time: vector k of a row holds the blocks 4 k .. 4 k + 3.
template <class T>
void transposable_piece(const T* x, uint8_t* mask, int64_t cols, int64_t begin, int64_t end) {
  using A = Arith<T>;
  alignas(64) A values[4][256];
  for (int64_t band = begin; band < end; ++band) {
    for (int64_t j = 0; j < cols; j += 256) {
      for (int i = 0; i < 4; ++i) {
        const T* row = x + (4 * band + i) * cols + j;
        Vec<A> r[16];
        for (int k = 0; k < 16; ++k) {
          const int some = static_cast<int>(std::clamp<int64_t>(cols - j - 16 * k, 0, 16));
          r[k] = some > 0 ? bounded_magnitude<A>(load_some(row + 16 * k, some)) : splat(A(0));
        }
        transpose(r);
        for (int k = 0; k < 16; ++k) store(values[i] + 16 * k, r[k]);
      }
      for (int g = 0; g < 4; ++g) {
        Vec<A> block[4][4];
        for (int i = 0; i < 4; ++i)
          for (int c = 0; c < 4; ++c) block[i][c] = load(values[i] + 16 * (4 * g + c));
        uint32_t which[16];
        store(which, best_patterns<A>(block));
        for (int k = 0; k < 16; ++k) {
          const int64_t column = j + 16 * k + 4 * g;
          if (column >= cols) break;
          for (int i = 0; i < 4; ++i) {
            const uint32_t bits = kTransposable.bits[which[k]] >> (4 * i) & 15, bytes = bits * 0x00204081u & 0x01010101u;
            std::memcpy(mask + (4 * band + i) * cols + column, &bytes, 4);
          }
        }
      }
    }
  }
}
