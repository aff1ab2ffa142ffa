// Packing and unpacking of 2:4 matrices, 32 groups at a time: element j of the groups is a vector of its own, six comparisons rank
// them, and two of four are kept by blends. Along rows, two at a time, the elements are taken apart by permutations; down a column they
// lie so already, and a tile of 64 x 64 is packed both ways while it is in the cache. Bytes per 16-bit element: 3.125, both ways 4.25, a mask 1 or
// 1/8 more; bandwidth-bound. Only bits move, so the hardware does not show. Wider elements go one group at a time. The lanes of each instruction set,
// which for_each_isa.h goes through in this order.
#if !defined(SK_SP24_ISA)
#define SK_SP24_ISA 0
#include "cpu/sp24_scalar.h"
#elif SK_SP24_ISA == 0
#undef SK_SP24_ISA
#define SK_SP24_ISA 1
#include "cpu/sp24_avx2.h"
#else
#include "cpu/sp24_avx512.h"
#endif

struct Picked {
  Halves lo, hi;  // the values that stay, in ascending position
  Halves nibble;  // their positions, two bits each
};

// Two of the four elements of 32 groups; `marked` null: all count.
SK_INLINE Picked pick_pairs(const Halves (&x)[4], const Lanes32* marked, uint16_t infinity) {
  const Halves largest = splat16(infinity), nan = splat16(static_cast<uint16_t>(infinity + 1)), last = splat16(0x7fff);
  Halves lack[4], value[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {  // what a magnitude lacks to infinity, for NaN one more than zero does; what is not marked, most
    lack[j] = smaller(largest - (x[j] & last), nan);
    value[j] = x[j];
    if (marked) {
      lack[j] = select16(marked[j], lack[j], last);
      value[j] = select16(marked[j], x[j], splat16(0));
    }
  }
  // The better one of either half stays, unless the worse one of the other is better still; of equals the first.
  const Lanes32 front = none_of(greater16(larger(lack[0], lack[1]), smaller(lack[2], lack[3])));
  const Lanes32 back = greater16(smaller(lack[0], lack[1]), larger(lack[2], lack[3]));
  const Lanes32 second = both_of(greater16(lack[0], lack[1]), none_of(front)), fourth = any_of(greater16(lack[2], lack[3]), back);
  const auto place = [](int of_lo, int of_hi) { return splat16(static_cast<uint16_t>(of_lo | of_hi << 2)); };
  const Halves lo_place = select16(back, place(2, 0), select16(second, place(1, 0), place(0, 0)));
  const Halves hi_place = select16(front, place(0, 1), select16(fourth, place(0, 3), place(0, 2)));
  return {select16(back, value[2], select16(second, value[1], value[0])), select16(front, value[1], select16(fourth, value[3], value[2])),
          lo_place | hi_place};
}

// The mask of 64 elements from element `at` on, a multiple of 64.
SK_INLINE uint64_t mask_of_64(MaskView mask, int64_t at) {
  if (mask.kind == MaskKind::bools) return bits_of_64_bools(static_cast<const uint8_t*>(mask.data) + at);
  uint64_t bits;
  std::memcpy(&bits, static_cast<const uint32_t*>(mask.data) + at / 32, 8);
  return bits;
}

// Words of 32 rows from row r on, `pairs` pairs of them from word w on, between e and a row-major block `stride` words wide. In the order
// sm80 a pair of words of two rows 8 apart is four words in a row.
SK_INLINE void store_words(const uint16_t* block, int64_t stride, uint16_t* e, bool sm80, int64_t rows, int64_t count, int64_t r, int64_t w,
                           int64_t pairs) {
  if (!sm80) {
    for (int i = 0; i < 32; ++i) std::memcpy(e + (r + i) * count + w, block + i * stride, 4 * pairs);
    return;
  }
  for (int64_t p = 0; p < pairs; ++p) {
    uint16_t* to = e + sp24_word(true, rows, count, r, w + 2 * p);
    for (int low = 0; low < 8; ++low)
      for (int half = 0; half < 32; half += 16, to += 4) {
        const uint16_t *front = block + (half + low) * stride + 2 * p, *back = front + 8 * stride;
        to[0] = front[0], to[1] = back[0], to[2] = front[1], to[3] = back[1];
      }
  }
}
SK_INLINE void load_words(uint16_t* block, int64_t stride, const uint16_t* e, bool sm80, int64_t rows, int64_t count, int64_t r, int64_t w,
                          int64_t pairs) {
  if (!sm80) {
    for (int i = 0; i < 32; ++i) std::memcpy(block + i * stride, e + (r + i) * count + w, 4 * pairs);
    return;
  }
  for (int64_t p = 0; p < pairs; ++p) {
    const uint16_t* from = e + sp24_word(true, rows, count, r, w + 2 * p);
    for (int low = 0; low < 8; ++low)
      for (int half = 0; half < 32; half += 16, from += 4) {
        uint16_t *front = block + (half + low) * stride + 2 * p, *back = front + 8 * stride;
        front[0] = from[0], back[0] = from[1], front[1] = from[2], back[1] = from[3];
      }
  }
}

// 64 columns of two rows: their 32 values and four words each.
SK_INLINE void pack_along(const uint16_t* const (&from)[2], MaskKind kind, const uint64_t* mask, uint16_t infinity, uint16_t* const (&v)[2],
                          uint16_t* const (&words)[2], bool past_cache) {
  Halves x[4];
  load4(from[0], from[1], x);
  Lanes32 marked[4];
  if (kind != MaskKind::none)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) marked[j] = lanes_from_bits(every_fourth(mask[0], mask[1], j));
  const Picked picked = kind == MaskKind::none ? pick_pairs(x, nullptr, infinity) : pick_pairs(x, marked, infinity);
  store2(v[0], v[1], picked.lo, picked.hi, past_cache);
  store_nibbles(words[0], words[1], picked.nibble);
}

// A tile of 64 x 64, and 64 bits for each of its rows, down its columns: 32 values and four words of each.
SK_INLINE void pack_across(const uint16_t (*tile)[64], const uint64_t* mask, uint16_t infinity, uint16_t (*v)[32], uint16_t (*words)[4]) {
  alignas(64) uint16_t pairs[64], word[32];
  for (int g = 0; g < 64; g += 32) {
    Halves gathered = splat16(0);
    for (int band = 0; band < 16; ++band) {
      Halves x[4];
      Lanes32 marked[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        x[j] = load32(&tile[4 * band + j][g]);
        marked[j] = lanes_from_bits(static_cast<uint32_t>(mask[4 * band + j] >> g));
      }
      const Picked picked = pick_pairs(x, marked, infinity);
      store2(pairs, pairs + 32, picked.lo, picked.hi, false);
      for (int k = 0; k < 32; ++k) std::memcpy(&v[g + k][2 * band], pairs + 2 * k, 4);
      gathered = next_nibble(gathered, picked.nibble);
      if ((band & 3) < 3) continue;
      store32(word, gathered);
      for (int k = 0; k < 32; ++k) words[g + k][band / 4] = word[k];
    }
  }
}

// Whether more than two of any four are marked, along the 64 columns of four rows or down them.
SK_INLINE bool too_many(const uint64_t* m) {
  const uint64_t across = (m[0] & m[1] & (m[2] | m[3])) | (m[2] & m[3] & (m[0] | m[1]));
  uint64_t along = 0;
  for (int i = 0; i < 4; ++i) along |= ((m[i] & m[i] >> 1) & (m[i] >> 2 | m[i] >> 3)) | ((m[i] >> 2 & m[i] >> 3) & (m[i] | m[i] >> 1));
  return (across | (along & 0x1111111111111111u)) != 0;
}

// Rows [begin, end), multiples of 32; both ways: of 64, and false where the mask is not 2:4 in both of them.
template <class U>
bool pack_piece(const Sp24Pack<U>& s, int64_t begin, int64_t end);

template <>
bool pack_piece<uint16_t>(const Sp24Pack<uint16_t>& s, int64_t begin, int64_t end) {
  constexpr int64_t kColumns = 2048;  // a page of x at a time; words of 32 rows wait in the cache, as their places are far apart
  const int64_t rows = s.out.rows, cols = s.out.cols;
  const MaskKind kind = s.mask.kind;
  if (!s.turned.v) {
    alignas(64) uint16_t words[32 * kColumns / 16];
    for (int64_t r = begin; r < end; r += 32)
      for (int64_t c = 0; c < cols; c += kColumns) {
        const int64_t some = std::min(kColumns, cols - c);
        for (int64_t i = 0; i < 32; i += 2)
          for (int64_t k = 0; k < some; k += 64) {
            const int64_t one = (r + i) * cols + c + k, two = one + cols;
            uint64_t mask[2] = {};
            if (kind != MaskKind::none) mask[0] = mask_of_64(s.mask, one), mask[1] = mask_of_64(s.mask, two);
            uint16_t* const row = words + (i * kColumns + k) / 16;
            pack_along({s.x + one, s.x + two}, kind, mask, s.infinity, {s.out.v + one / 2, s.out.v + two / 2}, {row, row + kColumns / 16},
                       s.out.past_cache);
          }
        store_words(words, kColumns / 16, s.out.e, s.out.sm80, rows, cols / 16, r, c / 16, some / 32);
      }
    finish_stores();
    return true;
  }
  bool good = true;
  alignas(64) uint16_t tile[64][64], v[64][32], words[64][4];
  uint64_t mask[64];
  for (int64_t r = begin; r < end; r += 64)
    for (int64_t c = 0; c < cols; c += 64) {
      for (int i = 0; i < 64; ++i) {
        std::memcpy(tile[i], s.x + (r + i) * cols + c, 128);
        mask[i] = mask_of_64(s.mask, (r + i) * cols + c);
      }
      for (int i = 0; i < 64; i += 4) good &= !too_many(mask + i);
      for (int i = 0; i < 64; i += 2) {
        uint16_t* const to = s.out.v + ((r + i) * cols + c) / 2;
        pack_along({tile[i], tile[i + 1]}, kind, mask + i, s.infinity, {to, to + cols / 2}, {words[i], words[i + 1]}, s.out.past_cache);
      }
      for (int half = 0; half < 64; half += 32) store_words(words[half], 4, s.out.e, s.out.sm80, rows, cols / 16, r + half, c / 16, 2);
      pack_across(tile, mask, s.infinity, v, words);
      for (int half = 0; half < 64; half += 32) store_words(words[half], 4, s.turned.e, s.turned.sm80, cols, rows / 16, c + half, r / 16, 2);
      for (int k = 0; k < 64; ++k) copy_line(s.turned.v + ((c + k) * rows + r) / 2, v[k], s.turned.past_cache);
    }
  finish_stores();
  return good;
}

// One group, `step` elements apart, into two values; returns the four bits.
template <class U>
SK_INLINE unsigned pick_pair(const U* x, int64_t step, unsigned marked, U infinity, U* to) {
  constexpr U kMagnitude = static_cast<U>(~U(0)) >> 1;
  U key[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const U size = x[j * step] & kMagnitude;
    key[j] = !(marked >> j & 1) ? U(0) : size > infinity ? U(1) : static_cast<U>(size + 2);
  }
  unsigned bits = 0;
  int count = 0;
  for (int i = 0; i < 4; ++i) {
    int rank = 0;
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) rank += j < i ? key[j] >= key[i] : key[j] > key[i];
    if (rank > 1) continue;
    to[count] = marked >> i & 1 ? x[i * step] : U(0);
    bits |= static_cast<unsigned>(i) << 2 * count++;
  }
  return bits;
}

template <class U>
bool pack_piece(const Sp24Pack<U>& s, int64_t begin, int64_t end) {
  const int64_t cols = s.out.cols, rows = s.out.rows;
  auto marked = [&](int64_t at) -> unsigned {
    if (s.mask.kind == MaskKind::none) return 1;
    if (s.mask.kind == MaskKind::bools) return static_cast<const uint8_t*>(s.mask.data)[at] != 0;
    return static_cast<const uint32_t*>(s.mask.data)[at >> 5] >> (at & 31) & 1;
  };
  for (int64_t r = begin; r < end; ++r)
    for (int64_t w = 0; w < cols / 16; ++w) {
      unsigned word = 0;
      for (int g = 0; g < 4; ++g) {
        const int64_t at = r * cols + 16 * w + 4 * g;
        const unsigned four = marked(at) | marked(at + 1) << 1 | marked(at + 2) << 2 | marked(at + 3) << 3;
        word |= pick_pair(s.x + at, 1, four, s.infinity, s.out.v + at / 2) << 4 * g;
      }
      s.out.word(r, w) = static_cast<uint16_t>(word);
    }
  if (!s.turned.v) return true;
  bool good = true;
  for (int64_t r = begin; r < end; r += 4)
    for (int64_t c = 0; c < cols; c += 64) {
      const uint64_t mask[4] = {mask_of_64(s.mask, r * cols + c), mask_of_64(s.mask, (r + 1) * cols + c), mask_of_64(s.mask, (r + 2) * cols + c),
                                mask_of_64(s.mask, (r + 3) * cols + c)};
      good &= !too_many(mask);
    }
  for (int64_t r = begin; r < end; r += 16)
    for (int64_t c = 0; c < cols; ++c) {
      unsigned word = 0;
      for (int g = 0; g < 4; ++g) {
        const int64_t at = (r + 4 * g) * cols + c;
        const unsigned four = marked(at) | marked(at + cols) << 1 | marked(at + 2 * cols) << 2 | marked(at + 3 * cols) << 3;
        word |= pick_pair(s.x + at, cols, four, s.infinity, s.turned.v + (c * rows + r) / 2 + 2 * g) << 4 * g;
      }
      s.turned.word(c, r / 16) = static_cast<uint16_t>(word);
    }
  return good;
}

// Rows [begin, end), multiples of 32. Where both values claim a position, the second stands.
template <class U>
void unpack_piece(const Sp24Packed<const U>& s, U* x, int64_t begin, int64_t end);

SK_INLINE void unpack_along(const uint16_t* const (&v)[2], const uint16_t* const (&words)[2], uint16_t* const (&x)[2], bool past_cache) {
  uint64_t bits[2];
#pragma GCC unroll 4
  for (int k = 0; k < 2; ++k) std::memcpy(bits + k, words[k], 8);
  Halves lo, hi, out[4];
  load2(v[0], v[1], lo, hi);
  Lanes32 bit[4], is[2][4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) bit[j] = lanes_from_bits(every_fourth(bits[0], bits[1], j));
#pragma GCC unroll 4
  for (int side = 0; side < 2; ++side) {
    const Lanes32 odd = bit[2 * side], far = bit[2 * side + 1];
    is[side][0] = none_of(any_of(odd, far));
    is[side][1] = both_of(odd, none_of(far));
    is[side][2] = both_of(none_of(odd), far);
    is[side][3] = both_of(odd, far);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) out[j] = select16(is[1][j], hi, select16(is[0][j], lo, splat16(0)));
  store4(x[0], x[1], out, past_cache);
}

template <>
void unpack_piece<uint16_t>(const Sp24Packed<const uint16_t>& s, uint16_t* x, int64_t begin, int64_t end) {
  constexpr int64_t kColumns = 2048;
  alignas(64) uint16_t words[32 * kColumns / 16];
  for (int64_t r = begin; r < end; r += 32)
    for (int64_t c = 0; c < s.cols; c += kColumns) {
      const int64_t some = std::min(kColumns, s.cols - c);
      load_words(words, kColumns / 16, s.e, s.sm80, s.rows, s.cols / 16, r, c / 16, some / 32);
      for (int64_t i = 0; i < 32; i += 2)
        for (int64_t k = 0; k < some; k += 64) {
          const int64_t one = (r + i) * s.cols + c + k, two = one + s.cols;
          const uint16_t* const row = words + (i * kColumns + k) / 16;
          unpack_along({s.v + one / 2, s.v + two / 2}, {row, row + kColumns / 16}, {x + one, x + two}, s.past_cache);
        }
    }
  finish_stores();
}

template <class U>
void unpack_piece(const Sp24Packed<const U>& s, U* x, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r)
    for (int64_t w = 0; w < s.cols / 16; ++w) {
      const unsigned word = s.word(r, w);
      for (int g = 0; g < 4; ++g) {
        const int64_t at = r * s.cols + 16 * w + 4 * g;
        U four[4] = {};
        four[word >> 4 * g & 3] = s.v[at / 2];
        four[word >> (4 * g + 2) & 3] = s.v[at / 2 + 1];
        std::memcpy(x + at, four, sizeof(four));
      }
    }
}
