// Packing and unpacking of 2:4 matrices, sixteen groups at a time: element j of the groups is a vector of its own, six comparisons rank
// them, and two of four are kept by blends. Along a row the elements are taken apart by permutations; down a column they lie so already,
// and a tile of 64 x 64 is packed both ways while it is in the cache. Bytes per 16-bit element: 3.125, both ways 4.25, a mask 1 or 1/8
// more; bandwidth-bound. Only bits move, so the hardware does not show. Wider elements go one group at a time.
// The lanes of each instruction set, which for_each_isa.h goes through in this order.
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
  U16 lo, hi;       // the values that stay, in ascending position
  Lanes16 bits[4];  // of their positions, two each
};

SK_INLINE Lanes16 majority(Lanes16 a, Lanes16 b, Lanes16 c) { return any_of(both_of(a, b), both_of(any_of(a, b), c)); }

// Two of the four elements of sixteen groups; `marked` null: all count.
SK_INLINE Picked pick_pairs(const U16 (&x)[4], const Lanes16* marked, uint16_t infinity) {
  U16 key[4], value[4];
  for (int j = 0; j < 4; ++j) {  // a number is its magnitude + 2, NaN 1, what is not marked 0
    const U16 size = x[j] & splat16(0x7fff);
    key[j] = select16(greater16(size, splat16(infinity)), splat16(1), size + splat16(2));
    value[j] = x[j];
    if (marked) {
      key[j] = select16(marked[j], key[j], splat16(0));
      value[j] = select16(marked[j], x[j], splat16(0));
    }
  }
  Lanes16 beaten[4][4];  // by the one of the second index; of equals the first wins
  for (int i = 0; i < 4; ++i)
    for (int j = i + 1; j < 4; ++j) {
      beaten[i][j] = greater16(key[j], key[i]);
      beaten[j][i] = none_of(beaten[i][j]);
    }
  const Lanes16 first = none_of(majority(beaten[0][1], beaten[0][2], beaten[0][3]));
  const Lanes16 second = none_of(majority(beaten[1][0], beaten[1][2], beaten[1][3]));
  const Lanes16 third = none_of(majority(beaten[2][0], beaten[2][1], beaten[2][3]));
  const Lanes16 fourth = none_of(majority(beaten[3][0], beaten[3][1], beaten[3][2]));
  return {select16(first, value[0], select16(second, value[1], value[2])),
          select16(fourth, value[3], select16(third, value[2], value[1])),
          {both_of(none_of(first), second), none_of(any_of(first, second)), any_of(fourth, none_of(third)), any_of(fourth, third)}};
}

// The mask of 64 elements from element `at` on, a multiple of 64.
SK_INLINE uint64_t mask_of_64(MaskView mask, int64_t at) {
  if (mask.kind == MaskKind::bools) return bits_of_64_bools(static_cast<const uint8_t*>(mask.data) + at);
  uint64_t bits;
  std::memcpy(&bits, static_cast<const uint32_t*>(mask.data) + at / 32, 8);
  return bits;
}

// 64 columns of row r from column c on.
SK_INLINE void pack_along(const Sp24Pack<uint16_t>& s, int64_t r, int64_t c) {
  U16 x[4];
  load4(s.x + r * s.out.cols + c, x);
  Picked picked;
  if (s.mask.kind == MaskKind::none) {
    picked = pick_pairs(x, nullptr, s.infinity);
  } else {
    const uint64_t bits = mask_of_64(s.mask, r * s.out.cols + c);
    Lanes16 marked[4];
    for (int j = 0; j < 4; ++j) marked[j] = lanes_from_bits(gather_bits(bits, j));
    picked = pick_pairs(x, marked, s.infinity);
  }
  store2(s.out.v + (r * s.out.cols + c) / 2, picked.lo, picked.hi);
  uint64_t words = 0;
  for (int j = 0; j < 4; ++j) words |= spread_bits(bits_of_lanes(picked.bits[j]), j);
  for (int k = 0; k < 4; ++k) s.out.word(r, c / 16 + k) = static_cast<uint16_t>(words >> 16 * k);
}

// The same tile of 64 rows and columns from (r, c) on, down its columns. `mask`: 64 bits for each of its rows.
SK_INLINE void pack_across(const Sp24Pack<uint16_t>& s, int64_t r, int64_t c, const uint64_t* mask) {
  const int64_t rows = s.out.rows, cols = s.out.cols;
  alignas(64) uint16_t pairs[16][32], word[16];
  for (int g = 0; g < 64; g += 16) {
    U16 words = splat16(0);
    for (int band = 0; band < 16; ++band) {
      U16 x[4];
      Lanes16 marked[4];
      for (int j = 0; j < 4; ++j) {
        x[j] = load(s.x + (r + 4 * band + j) * cols + c + g);
        marked[j] = lanes_from_bits(static_cast<Mask16>(mask[4 * band + j] >> g));
      }
      const Picked picked = pick_pairs(x, marked, s.infinity);
      alignas(64) uint16_t both[32];
      store2(both, picked.lo, picked.hi);
      for (int k = 0; k < 16; ++k) std::memcpy(&pairs[k][2 * band], both + 2 * k, 4);
      for (int j = 0; j < 4; ++j) words = words | select16(picked.bits[j], splat16(static_cast<uint16_t>(1 << (4 * (band & 3) + j))), splat16(0));
      if ((band & 3) == 3) {
        store(word, words);
        for (int k = 0; k < 16; ++k) s.turned.word(c + g + k, r / 16 + band / 4) = word[k];
        words = splat16(0);
      }
    }
    for (int k = 0; k < 16; ++k) std::memcpy(s.turned.v + ((c + g + k) * rows + r) / 2, pairs[k], 64);
  }
}

// Rows [begin, end); both ways: multiples of 64.
template <class U>
void pack_piece(const Sp24Pack<U>& s, int64_t begin, int64_t end);

template <>
void pack_piece<uint16_t>(const Sp24Pack<uint16_t>& s, int64_t begin, int64_t end) {
  if (!s.turned.v) {
    for (int64_t r = begin; r < end; ++r)
      for (int64_t c = 0; c < s.out.cols; c += 64) pack_along(s, r, c);
    return;
  }
  uint64_t mask[kSp24Band];
  for (int64_t r = begin; r < end; r += kSp24Band)
    for (int64_t c = 0; c < s.out.cols; c += 64) {
      for (int i = 0; i < kSp24Band; ++i) mask[i] = mask_of_64(s.mask, (r + i) * s.out.cols + c);
      for (int i = 0; i < kSp24Band; ++i) pack_along(s, r + i, c);
      pack_across(s, r, c, mask);
    }
}

// One group, `step` elements apart, into two values; returns the four bits.
template <class U>
SK_INLINE unsigned pick_pair(const U* x, int64_t step, unsigned marked, U infinity, U* to) {
  constexpr U kMagnitude = static_cast<U>(~U(0)) >> 1;
  U key[4];
  for (int j = 0; j < 4; ++j) {
    const U size = x[j * step] & kMagnitude;
    key[j] = !(marked >> j & 1) ? U(0) : size > infinity ? U(1) : static_cast<U>(size + 2);
  }
  unsigned bits = 0;
  int count = 0;
  for (int i = 0; i < 4; ++i) {
    int rank = 0;
    for (int j = 0; j < 4; ++j) rank += j < i ? key[j] >= key[i] : key[j] > key[i];
    if (rank > 1) continue;
    to[count] = marked >> i & 1 ? x[i * step] : U(0);
    bits |= static_cast<unsigned>(i) << 2 * count++;
  }
  return bits;
}

template <class U>
void pack_piece(const Sp24Pack<U>& s, int64_t begin, int64_t end) {
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
  if (!s.turned.v) return;
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
}

// Rows [begin, end). Where both values claim a position, the second stands.
template <class U>
void unpack_piece(const Sp24Packed<const U>& s, U* x, int64_t begin, int64_t end);

template <>
void unpack_piece<uint16_t>(const Sp24Packed<const uint16_t>& s, uint16_t* x, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r)
    for (int64_t c = 0; c < s.cols; c += 64) {
      uint64_t words = 0;
      for (int k = 0; k < 4; ++k) words |= static_cast<uint64_t>(s.word(r, c / 16 + k)) << 16 * k;
      U16 lo, hi, out[4];
      load2(s.v + (r * s.cols + c) / 2, lo, hi);
      Lanes16 bit[4], is[2][4];
      for (int j = 0; j < 4; ++j) bit[j] = lanes_from_bits(gather_bits(words, j));
      for (int side = 0; side < 2; ++side) {
        const Lanes16 odd = bit[2 * side], far = bit[2 * side + 1];
        is[side][0] = none_of(any_of(odd, far));
        is[side][1] = both_of(odd, none_of(far));
        is[side][2] = both_of(none_of(odd), far);
        is[side][3] = both_of(odd, far);
      }
      for (int j = 0; j < 4; ++j) out[j] = select16(is[1][j], hi, select16(is[0][j], lo, splat16(0)));
      store4(x + r * s.cols + c, out);
    }
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
