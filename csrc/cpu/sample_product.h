// Rows and columns of numbered samples: a 64-bit uniform u each, whose product with the table's total gives a place in it.
// A guide by the place's high bits lands on the item or just before it, so that a search is one or two probes whatever the
// number of items (4096 items, 1M samples: 4.4 ns a pair, of which Philox is 1.2; Zen 5, one core).
// The tables stay in the caches; bound by the latency of the probes.
SK_INLINE int32_t table_item(const SampleTable& table, uint64_t place) {
  uint32_t item = table.guide[place >> table.shift];
  item += table.sums[item] <= place;
  while (__builtin_expect(table.sums[item] <= place, 0)) ++item;
  return static_cast<int32_t>(item);
}

void draw_samples(const SampleTable& row_table, const SampleTable& col_table, uint64_t seed, uint64_t first, int64_t count, int32_t* rows,
                  int32_t* cols) {
  uint64_t row_place[kWordLanes], col_place[kWordLanes];
  for (int64_t i = 0; i < count; i += kWordLanes) {
    const WordLanes4 x = random_word_lanes(seed, first + i, Purpose::samples);
    store(row_place, multiply_high_lanes(x.a, x.b, row_table.total));
    store(col_place, multiply_high_lanes(x.c, x.d, col_table.total));
    const int live = static_cast<int>(std::min<int64_t>(kWordLanes, count - i));
    for (int k = 0; k < live; ++k) {
      rows[i + k] = table_item(row_table, row_place[k]);
      cols[i + k] = table_item(col_table, col_place[k]);
    }
  }
}
