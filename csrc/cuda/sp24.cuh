// Packs a matrix to two of every four columns with their positions, with its transpose from the same read, and unpacks it.
// A warp holds a tile of 32 rows and 64 columns in registers, a thread 4 rows and 16 columns of it: groups along rows and down columns
// both lie within a thread, and so do the 4 x 4 blocks in which a transposable pattern is searched. Of four, the better one of either
// half stays unless the worse one of the other is better still: four comparisons. Along rows a thread writes 16 bytes of values and a
// whole word of positions per row; down columns four lanes exchange their pairs by shuffles, so that each writes 16 bytes and a word of
// four columns. The order sm80 puts a warp's words in runs of 16 bytes and more. No shared memory, no barrier.
// Bytes per element: 2 read, 1 + 1/8 written, as much again for the transpose; bandwidth-bound (the search of the pattern: about 30
// operations per element, near the memory's time).
// State: compiled for sm_80 and sm_90a and run under the emulator of csrc/simt; not yet run on a GPU, no time measured.
//
// budget: sp24_compress_kernel 96
// budget: sp24_decompress_kernel 64
// promise: sp24_compress_kernel LDG.E.128 STG.E.128 no-fp64
// promise: sp24_decompress_kernel LDG.E.128 STG.E.128 no-fp64
#pragma once
#include "common/sp24_layout.h"
#include "cuda/collective.cuh"
#include "cuda/sp24.h"
#include "cuda/transposable.cuh"
#include "cuda/vector_io.cuh"

namespace sparsekern::cuda {

enum class Sp24Mode { rows, masked_rows, masked_both, searched_both };

constexpr int kSp24BlocksPerSm = 2, kSp24Warps = kThreads / 32;

// Which rows and columns a thread has: rows row .. row + 3, columns col .. col + 15.
struct Sp24Place {
  int64_t row, col;
  bool inside;
};

// A block's warps lie `high` tiles down and the rest side by side: wide where rows are written, high where columns are, too.
__device__ __forceinline__ Sp24Place sp24_place(int64_t rows, int64_t cols, int high) {
  const int wide = kSp24Warps / high;
  const auto across = static_cast<unsigned>((cols / kSp24Cols + wide - 1) / wide);
  const int64_t tile_row = static_cast<int64_t>(blockIdx.x / across) * high + warp_id() / wide;
  const int64_t tile_col = static_cast<int64_t>(blockIdx.x % across) * wide + warp_id() % wide;
  return {tile_row * kSp24Rows + lane_id() / 4 * 4, tile_col * kSp24Cols + lane_id() % 4 * 16,
          tile_row < rows / kSp24Rows && tile_col < cols / kSp24Cols};
}

// Two of four halves as a word, and the four bits of their positions.
struct Sp24Pair {
  unsigned values, bits;
};

template <bool masked>
__device__ __forceinline__ Sp24Pair pick_pair(const unsigned (&x)[4], unsigned marked, unsigned infinity) {
  unsigned lack[4], value[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {  // what a magnitude lacks to infinity, for NaN one more than zero does; what is not marked, most
    const bool counts = !masked || (marked >> j & 1) != 0;
    lack[j] = counts ? min(infinity - (x[j] & 0x7fff), infinity + 1) : 0x7fffu;
    value[j] = counts ? x[j] : 0;
  }
  // The better one of either half stays, unless the worse one of the other is better still; of equals the first.
  const bool front = max(lack[0], lack[1]) <= min(lack[2], lack[3]), back = min(lack[0], lack[1]) > max(lack[2], lack[3]);
  const bool second = lack[0] > lack[1] && !front, fourth = lack[2] > lack[3] || back;
  const unsigned low = back ? value[2] : second ? value[1] : value[0], high = front ? value[1] : fourth ? value[3] : value[2];
  return {low | high << 16, (back ? 2u : second ? 1u : 0u) | (front ? 4u : fourth ? 12u : 8u)};
}

// Sixteen bits for a thread's columns of one row.
__device__ __forceinline__ unsigned marked_columns(MaskView mask, int64_t at, bool aligned) {
  if (mask.kind == MaskKind::bits) return static_cast<const uint32_t*>(mask.data)[at >> 5] >> (at & 16) & 0xffff;
  const Group<uint8_t, 16> bytes = load_group<uint8_t, 16, Cache::stream>(static_cast<const uint8_t*>(mask.data) + at, aligned);
  unsigned bits = 0;
#pragma unroll
  for (int k = 0; k < 4; ++k) bits |= bytes_to_bits(reinterpret_cast<const unsigned*>(&bytes)[k]) << 4 * k;
  return bits;
}

// The next four columns come to the front, and after four turns all are back: a loop over a thread's blocks then needs no copy of its
// body per block, nor what the compiler would keep in registers between such copies.
__device__ __forceinline__ void next_columns(unsigned (&x)[4][8]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const unsigned front[2] = {x[i][0], x[i][1]};
#pragma unroll
    for (int k = 0; k < 6; ++k) x[i][k] = x[i][k + 2];
    x[i][6] = front[0], x[i][7] = front[1];
  }
}

// The four rows' columns of the best patterns of the thread's four blocks.
__device__ __forceinline__ void search_patterns(unsigned (&x)[4][8], unsigned infinity, unsigned (&marked)[4]) {
#pragma unroll 1
  for (int block = 0; block < 4; ++block) {
    float size[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const unsigned bits = x[i][j >> 1] >> 16 * (j & 1) & 0x7fff;
        // A half's exponent and fraction moved to their places, scaled by 2^112, is its value; infinity and NaN stay above all others.
        const float half = bits > 0x7bff ? __uint_as_float(0x7f800000u | (bits & 0x3ff)) : __uint_as_float(bits << 13) * 0x1p112f;
        size[i][j] = bounded_magnitude(infinity == 0x7c00 ? half : __uint_as_float(bits << 16));
      }
    const unsigned best = best_pattern(size);
#pragma unroll
    for (int i = 0; i < 4; ++i) marked[i] = marked[i] >> 4 | (best >> 4 * i & 15) << 12;
    next_columns(x);
  }
}

// Lane p of four (4 lanes apart) holds row p of a 4 x 4 matrix of words; then column p.
__device__ __forceinline__ void transpose_quads(unsigned (&w)[4]) {
  const int p = lane_id() / 4 & 3;
#pragma unroll
  for (int step = 1; step < 4; step *= 2) {
    const bool upper = (p & step) != 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (k & step) continue;
      const unsigned other = __shfl_xor_sync(kAllLanes, upper ? w[k] : w[k + step], 4 * step);
      if (upper) w[k] = other;
      else w[k + step] = other;
    }
  }
}

// The transpose's pairs of 4 rows and 16 columns, four columns at a time; all lanes take part.
__device__ __forceinline__ void pack_columns(const Sp24Pack& a, const Sp24Place& at, unsigned (&x)[4][8], const unsigned (&marked)[4]) {
  const int p = lane_id() / 4 & 3;              // among the four lanes that share 16 rows
  const int64_t first = at.row & ~int64_t{15};  // of these rows
#pragma unroll 1
  for (int s = 0; s < 4; ++s) {
    unsigned pairs[4], bits = 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      unsigned group[4], four = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        group[i] = x[i][k >> 1] >> 16 * (k & 1) & 0xffff;
        four |= (marked[i] >> (4 * s + k) & 1) << i;
      }
      const Sp24Pair pair = pick_pair<true>(group, four, a.infinity);
      pairs[k] = pair.values;
      bits |= pair.bits << 4 * k;
    }
    transpose_quads(pairs);
    unsigned word = 0;
#pragma unroll
    for (int from = 0; from < 4; ++from) word |= (__shfl_sync(kAllLanes, bits, (lane_id() & ~12) | from << 2) >> 4 * p & 15) << 4 * from;
    const int64_t column = at.col + 4 * s + p;
    *reinterpret_cast<uint4*>(a.vt + (column * a.rows + first) / 2) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    a.et[sp24_word(a.sm80, a.cols, a.rows / 16, column, first / 16)] = static_cast<uint16_t>(word);
    next_columns(x);
  }
}

template <Sp24Mode mode>
__global__ void __launch_bounds__(kThreads, kSp24BlocksPerSm) sp24_compress_kernel(const __grid_constant__ Sp24Pack a) {
  constexpr bool both = mode == Sp24Mode::masked_both || mode == Sp24Mode::searched_both;
  const Sp24Place at = sp24_place(a.rows, a.cols, both ? 4 : 1);
  if (!at.inside) return;  // the whole warp
  const bool aligned = is_aligned(a.x, 16), mask_aligned = is_aligned(a.mask.data, 16);
  unsigned x[4][8], marked[4] = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const Group<uint16_t, 8> some = load_group<uint16_t, 8>(a.x + (at.row + i) * a.cols + at.col + 8 * k, aligned);
#pragma unroll
      for (int w = 0; w < 4; ++w) x[i][4 * k + w] = reinterpret_cast<const unsigned*>(&some)[w];
    }
  if (mode == Sp24Mode::searched_both) {
    search_patterns(x, a.infinity, marked);
  } else if (mode != Sp24Mode::rows) {
#pragma unroll
    for (int i = 0; i < 4; ++i) marked[i] = marked_columns(a.mask, (at.row + i) * a.cols + at.col, mask_aligned);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    unsigned values[4], word = 0;
#pragma unroll
    for (int g = 0; g < 4; ++g) {
      const unsigned front = x[i][2 * g], back = x[i][2 * g + 1];
      const unsigned group[4] = {front & 0xffff, front >> 16, back & 0xffff, back >> 16};
      const Sp24Pair pair = pick_pair<mode != Sp24Mode::rows>(group, marked[i] >> 4 * g, a.infinity);
      values[g] = pair.values;
      word |= pair.bits << 4 * g;
    }
    *reinterpret_cast<uint4*>(a.v + ((at.row + i) * a.cols + at.col) / 2) = make_uint4(values[0], values[1], values[2], values[3]);
    a.e[sp24_word(a.sm80, a.rows, a.cols / 16, at.row + i, at.col / 16)] = static_cast<uint16_t>(word);
  }
  if (both) pack_columns(a, at, x, marked);
}

// A thread unpacks 4 rows of 16 columns. Where both values claim a position, the second stands.
__global__ void __launch_bounds__(kThreads, 4) sp24_decompress_kernel(const __grid_constant__ Sp24Unpack a) {
  const Sp24Place at = sp24_place(a.rows, a.cols, 1);
  if (!at.inside) return;
  const bool aligned = is_aligned(a.v, 16);
  Group<uint16_t, 8> values[4];
  unsigned words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    values[i] = load_group<uint16_t, 8, Cache::stream>(a.v + ((at.row + i) * a.cols + at.col) / 2, aligned);
    words[i] = a.e[sp24_word(a.sm80, a.rows, a.cols / 16, at.row + i, at.col / 16)];
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    unsigned out[8];
#pragma unroll
    for (int g = 0; g < 4; ++g) {
      const unsigned pair = reinterpret_cast<const unsigned*>(&values[i])[g], low = pair & 0xffff, high = pair >> 16;
      const unsigned first = words[i] >> 4 * g & 3, second = words[i] >> (4 * g + 2) & 3;
      unsigned element[4];
#pragma unroll
      for (unsigned j = 0; j < 4; ++j) element[j] = second == j ? high : first == j ? low : 0;
      out[2 * g] = element[0] | element[1] << 16;
      out[2 * g + 1] = element[2] | element[3] << 16;
    }
    uint4* to = reinterpret_cast<uint4*>(a.x + (at.row + i) * a.cols + at.col);
    to[0] = make_uint4(out[0], out[1], out[2], out[3]);
    to[1] = make_uint4(out[4], out[5], out[6], out[7]);
  }
}

}  // namespace sparsekern::cuda
