// Segmented selection, the part that is compiled per instruction set; select.cpp walks the segments.
// The k-th largest key is bracketed by two order statistics of a random sample. One pass then settles every key outside
// the bracket, writes its mask, and sets the few keys strictly inside aside (about n^(2/3) of n); the same step on those
// finds the key. Heavy ties sit on the bracket's ends, where they are counted, not stored: no distribution is a bad one.
// Bytes per fp32 element: 4 read + mask written; bandwidth-bound. The answer is unique, so neither sample nor hardware shows.
// After Floyd and Rivest, "Expected time bounds for selection", 1975.

template <int kind, class T>
SK_INLINE void make_keys_loop(const T* values, const void* eligible, bool invert, int64_t begin, int64_t end, KeyOrder<KeyFormat<T>> order,
                              KeyOf<T>* keys) {
  const KeyLanes<KeyFormat<T>> lanes(order);
  const auto none = splat(KeyOf<T>(kIneligibleKey));
  int64_t i = begin;
  for (; i + 16 <= end; i += 16) {
    auto key = lanes.of(load(values + i));
    if (kind != 0) key = select(mask_at(kind, eligible, i, 16, invert), key, none);
    store(keys + (i - begin), key);
  }
  if (i < end) {
    const int count = static_cast<int>(end - i);
    store(keys + (i - begin), select(mask_at(kind, eligible, i, count, invert), lanes.of(load_some(values + i, count)), none));
  }
}

// Keys of elements [begin, end), begin a multiple of 32; the row of 16 that holds the last one is filled up with 0.
template <class T>
void make_keys(const T* values, MaskView eligible, bool invert, int64_t begin, int64_t end, KeyOrder<KeyFormat<T>> order, KeyOf<T>* keys) {
  // One loop per kind of mask: inside it the kind is a constant.
  if (eligible.kind == MaskKind::bools) make_keys_loop<1>(values, eligible.data, invert, begin, end, order, keys);
  else if (eligible.kind == MaskKind::bits) make_keys_loop<2>(values, eligible.data, invert, begin, end, order, keys);
  else make_keys_loop<0>(values, nullptr, false, begin, end, order, keys);
}

template <class Key>
SK_INLINE int64_t count_at_least(const Key* keys, int64_t n, Key low) {
  const auto below = splat(Key(low - 1));  // low > 0
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += 16) count += __builtin_popcount(greater(load(keys + i), below));
  return count;
}

template <class Key>
int64_t count_equal(const Key* keys, int64_t n, Key wanted) {
  const auto key = splat(wanted);
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += 16) {
    const uint32_t inside = n - i >= 16 ? 0xffffu : (1u << (n - i)) - 1;
    count += __builtin_popcount(equal(load(keys + i), key) & inside);
  }
  return count;
}

// `kind`: of the mask; indices are wanted exactly where a mask is written.
template <int kind, class Key>
struct Splitter {
  decltype(splat(Key())) low, high;
  U32 iota;
  bool keep_high;
  Key* inside;
  uint32_t* where;
  uint32_t first;
  void* mask;
  int64_t mask_at, above = 0, at_high = 0, at_low = 0, stored;

  SK_INLINE void row(const Key* keys, int64_t i, int count) {
    const auto key = load(keys + i);
    const Mask16 over = greater(key, high), under = greater(low, key);
    Mask16 taken = over;
    above += __builtin_popcount(over);
    // Few rows have a key in the bracket, unless ties make it all of them: the branch is cheap either way.
    if (static_cast<Mask16>(over | under) != 0xffff) {
      const Mask16 top = equal(key, high), bottom = static_cast<Mask16>(equal(key, low) & ~top);
      const Mask16 within = static_cast<Mask16>(~(over | under | top | bottom));
      if (keep_high) taken |= top;
      at_high += __builtin_popcount(top);
      at_low += __builtin_popcount(bottom);
      compress(inside + stored, within, key);
      if (kind != 0) compress(where + stored, within, iota + splat(static_cast<uint32_t>(first + i)));
      stored += __builtin_popcount(within);
    }
    put_mask(kind, mask, mask_at + i, count, taken);
  }
};

template <int kind, class Key>
SK_INLINE void split_loop(const Key* keys, int64_t n, const Bracket<Key>& bracket, Split& counts, Key* inside, uint32_t* where, int64_t first,
                          MaskOut mask) {
  alignas(64) static constexpr uint32_t kIota[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  Splitter<kind, Key> splitter{splat(bracket.low),
                               splat(bracket.high),
                               load(kIota),
                               bracket.keep_high,
                               inside,
                               where,
                               static_cast<uint32_t>(first),
                               mask.data,
                               mask.begin + first,
                               0,
                               0,
                               0,
                               counts.inside};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) splitter.row(keys, i, 16);
  if (i < n) splitter.row(keys, i, static_cast<int>(n - i));
  counts.above += splitter.above;
  counts.at_high += splitter.at_high;
  counts.at_low += splitter.at_low;
  counts.inside = splitter.stored;
}

// Counts keys [0, n) against the bracket and appends those strictly inside, with their index from `first` on, to `inside`
// and `where`, which need 16 entries to spare; writes the provisional mask of these elements. Without a mask no indices.
template <class Key>
void split_keys(const Key* keys, int64_t n, const Bracket<Key>& bracket, Split& counts, Key* inside, uint32_t* where, int64_t first, MaskOut mask) {
  if (mask.kind == MaskKind::bools) split_loop<1>(keys, n, bracket, counts, inside, where, first, mask);
  else if (mask.kind == MaskKind::bits) split_loop<2>(keys, n, bracket, counts, inside, where, first, mask);
  else split_loop<0>(keys, n, bracket, counts, inside, where, first, mask);
}

template <class Key>
Kth<Key> kth_largest(const Key* keys, int64_t n, int64_t k, Key* scratch);

// Brackets the k-th largest of n keys by two order statistics of `m` of them. Each attempt is wider; the last one is certain.
template <class Key>
Bracket<Key> bracket_of(const Key* sample, int64_t m, int64_t n, int64_t k, int attempt, Key* scratch) {
  Bracket<Key> bracket{0, ~Key(0), false};
  if (attempt >= kAttempts) return bracket;
  const double rank = static_cast<double>(k) / static_cast<double>(n) * static_cast<double>(m);
  const double spread = 3.5 * static_cast<double>(1 << 2 * attempt) * std::sqrt(rank * (1 - rank / static_cast<double>(m)) + 1);
  const int64_t high = static_cast<int64_t>(rank - spread), low = static_cast<int64_t>(rank + spread) + 1;
  if (high >= 1) {
    const Kth<Key> found = kth_largest(sample, m, high, scratch);
    if (found.key != kIneligibleKey) {
      bracket.high = found.key;
      // Most of the ties at the upper end will be taken: then they start as taken.
      bracket.keep_high = 2 * (rank - static_cast<double>(high - found.ties)) > static_cast<double>(count_equal(sample, m, found.key));
    }
  }
  if (low <= m) bracket.low = kth_largest(sample, m, low, scratch).key;
  return bracket;
}

// The k-th largest of n keys (1 <= k <= n; the array's last row of 16 filled up with 0), and how many of its equals are among
// the first k. Needs scratch_keys(n) of scratch.
template <class Key>
Kth<Key> kth_largest(const Key* keys, int64_t n, int64_t k, Key* scratch) {
  Key low = 0, high = ~Key(0);  // of the keys looked at: low < key < high, or the first time anything
  Key* halves[2] = {scratch, scratch + n + 32};
  for (int attempt = 0, turn = 0; n > kBisected;) {
    const int64_t m = sample_size(n);
    std::vector<Key> sample(m + 16 + scratch_keys(m));
    for (int64_t i = 0; i < m; ++i) sample[i] = keys[sample_position(i, m, n, attempt)];
    std::fill_n(sample.begin() + m, 16, Key(0));
    const Bracket<Key> bracket = bracket_of(sample.data(), m, n, k, attempt, sample.data() + m + 16);
    Split split;
    split_keys(keys, n, bracket, split, halves[turn], nullptr, 0, MaskOut{});
    if (split.side(k) == Side::missed) {
      ++attempt;
    } else if (split.side(k) == Side::high) {
      return {bracket.high, k - split.above};
    } else if (split.side(k) == Side::low) {
      return {bracket.low, k - split.above - split.at_high - split.inside};
    } else {
      if (attempt >= kAttempts) break;
      attempt = split.inside < n ? 0 : attempt + 1;  // n shrinks or the attempts run out: the loop ends
      k -= split.above + split.at_high;
      n = split.inside;
      keys = halves[turn];
      std::fill_n(halves[turn] + n, 16, Key(0));
      turn ^= 1;
      low = bracket.low;
      high = bracket.high;
    }
  }
  // Few keys are left (or no sample was any good): bisect the key's value, counting each time. No branch depends on the data.
  while (high - low > 1) {  // at least k keys >= low, fewer than k keys >= high
    const Key middle = low + (high - low) / 2;
    const bool up = count_at_least(keys, n, middle) >= k;
    low = up ? middle : low;
    high = up ? high : middle;
  }
  return {low, k - count_at_least(keys, n, Key(low + 1))};
}

// The final mask of n keys: those above `threshold`, and the first `ties` equal to it, which are subtracted from `ties`.
template <class Key>
void emit_keys(const Key* keys, int64_t n, Key threshold, int64_t& ties, int64_t first, MaskOut mask) {
  const auto bound = splat(threshold);
  for (int64_t i = 0; i < n; i += 16) {
    const auto key = load(keys + i);
    Mask16 chosen = greater(key, bound), equals = equal(key, bound);
    const int count = static_cast<int>(std::min<int64_t>(16, n - i)), found = __builtin_popcount(equals);
    if (found > ties) {
      Mask16 rest = equals;
      for (int64_t taken = 0; taken < ties; ++taken) rest &= static_cast<Mask16>(rest - 1);
      equals = static_cast<Mask16>(equals & ~rest);
      ties = 0;
    } else {
      ties -= found;
    }
    put_mask(static_cast<int>(mask.kind), mask.data, mask.begin + first + i, count, static_cast<Mask16>(chosen | equals));
  }
}

// Number of set elements in [begin, end) of a mask, begin a multiple of 32.
inline int64_t count_mask(MaskView mask, int64_t begin, int64_t end) {
  int64_t count = 0;
  for (int64_t i = begin; i < end; i += 16)
    count += __builtin_popcount(mask_at(static_cast<int>(mask.kind), mask.data, i, static_cast<int>(std::min<int64_t>(16, end - i)), false));
  return count;
}
