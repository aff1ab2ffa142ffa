// The n largest of every m neighbours, -0 as +0, NaN below every number, equal ones by the lowest index; and the best of the 90
// patterns of a 4 x 4 block.
// Flat groups and lanes of m <= 8: a thread has whole groups in registers and counts for each element those that beat it, four
// counts to a register, so that a pair costs one comparison and one addition; the counts become mask bytes at once.
// Other groups: a tile of 128 groups in shared memory, one thread each; a network sorts the keys in registers, and the n-th
// largest and the number above it say what is kept.
// Bytes per fp32 element: 4 and 1 (bools), 1/8 (packed) or 4 (apply); bandwidth-bound to m = 16 or so, then by the network's
// comparisons, about log2(m)^2 / 2 per element. Transposable: 90 sums of a block and their comparisons, 28 operations per
// element, about as long as its 5 bytes take.
// State: compiled for sm_80 and sm_90a and run under the emulator of csrc/simt; not yet run on a GPU, no time measured.
//
// budget: nm_flat_kernel 64
// budget: nm_lanes_kernel 96
// budget: nm_tile_kernel 64
// budget: nm_tile_kernel<32 80
// budget: nm_tile_kernel<64 128
// budget: nm_transposable_kernel 128
// promise: nm_flat_kernel LDG.E.128 no-fp64
// promise: nm_lanes_kernel no-fp64
// promise: nm_tile_kernel LDG.E.128 no-fp64
// promise: nm_transposable_kernel no-fp64
#pragma once
#include <utility>

#include "common/nm_patterns.h"
#include "cuda/collective.cuh"
#include "cuda/nm_keys.cuh"
#include "cuda/nm_mask.h"
#include "cuda/vector_io.cuh"

namespace sparsekern::cuda {

enum class NmOutput { bools, bits, apply };

constexpr int kFlatBlocksPerSm = 4, kLanesBlocksPerSm = 2;

// ---- m of 1, 2, 4 or 8, one group behind the other ----

// Both four counts of a thread's eight elements: byte j counts those that beat element j. All before it do until one is beaten.
__device__ __forceinline__ void count_better(const int (&key)[8], int m, unsigned (&rank)[2]) {
  const auto pair = [&](int i, int j) {
    if (key[j] <= key[i]) return;
    rank[i / 4] += 1u << 8 * (i % 4);
    rank[j / 4] -= 1u << 8 * (j % 4);
  };
  rank[0] = m == 1 ? 0u : m == 2 ? 0x01000100u : 0x03020100u;
  rank[1] = m == 8 ? 0x07060504u : rank[0];
  if (m >= 2) {
#pragma unroll
    for (int i = 0; i < 8; i += 2) pair(i, i + 1);
  }
  if (m >= 4) {
#pragma unroll
    for (int h = 0; h < 8; h += 4) pair(h, h + 2), pair(h, h + 3), pair(h + 1, h + 2), pair(h + 1, h + 3);
  }
  if (m == 8) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 4; j < 8; ++j) pair(i, j);
  }
}

// Four counts below 8 to four bytes: 1 where fewer than n are better.
__device__ __forceinline__ unsigned kept_bytes(unsigned rank, int n) { return ~(rank + (128u - n) * 0x01010101u) >> 7 & 0x01010101u; }

// Units of eight elements, U of them in flight to a thread.
template <class Bits>
__global__ void __launch_bounds__(kThreads, kFlatBlocksPerSm)
    nm_flat_kernel(Bits* x, uint8_t* mask, int64_t numel, int n, int m, NmOrder order, NmOutput output) {
  constexpr int U = 8 / sizeof(Bits);
  const bool aligned = is_aligned(x, 16), mask_aligned = is_aligned(mask, 8);
  // Packed, the bytes behind the last element fill up its word.
  const int64_t units = output == NmOutput::bits ? (numel + 31) / 32 * 4 : (numel + 7) / 8, stride = static_cast<int64_t>(gridDim.x) * kThreads * U;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads * U + threadIdx.x; at < units; at += stride) {
    Group<Bits, 8> raw[U];
#pragma unroll
    for (int u = 0; u < U; ++u)
      if (const int64_t begin = (at + u * kThreads) * 8; begin + 8 <= numel) raw[u] = load_group<Bits, 8, Cache::stream>(x + begin, aligned);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int64_t unit = at + u * kThreads, begin = unit * 8;
      if (unit >= units) continue;
      const int count = static_cast<int>(max(int64_t{0}, min(int64_t{8}, numel - begin)));
      if (count < 8) {
#pragma unroll
        for (int k = 0; k < 8; ++k) raw[u].at[k] = k < count ? x[begin + k] : Bits(0);
      }
      uint32_t word[8];
      int key[8];
#pragma unroll
      for (int k = 0; k < 8; ++k) word[k] = in_word(raw[u].at[k]);
      nm_keys(order, word, key);
      unsigned rank[2];
      count_better(key, m, rank);
      const unsigned low = kept_bytes(rank[0], n), high = kept_bytes(rank[1], n);
      if (output == NmOutput::bits) {
        mask[unit] = static_cast<uint8_t>((bytes_to_bits(low) | bytes_to_bits(high) << 4) & ((1u << count) - 1));
      } else if (output == NmOutput::bools) {
        if (count == 8 && mask_aligned) {
          *reinterpret_cast<uint2*>(mask + begin) = make_uint2(low, high);
        } else {
          for (int k = 0; k < count; ++k) mask[begin + k] = (k < 4 ? low : high) >> 8 * (k & 3) & 1;
        }
      } else {
#pragma unroll
        for (int k = 0; k < 8; ++k)
          if (!((k < 4 ? low : high) >> 8 * (k & 3) & 1)) raw[u].at[k] = 0;
        if (count == 8) {
          store_group(x + begin, raw[u], aligned);
        } else {
#pragma unroll
          for (int k = 0; k < 8; ++k)
            if (k < count) x[begin + k] = raw[u].at[k];
        }
      }
    }
  }
}

// ---- groups of up to W <= 8 across lines ----

// Neighbouring elements of L lanes, moved in one access where they are aligned.
template <class Bits, int L>
struct alignas(sizeof(Bits) * L) Lanes {
  using Word = std::conditional_t<sizeof(Bits) * L == 16, uint4, std::conditional_t<sizeof(Bits) * L == 8, uint2, unsigned>>;
  Bits at[L];

  __device__ __forceinline__ void load(const Bits* p, bool aligned) {
    if (aligned) {
      *reinterpret_cast<Word*>(at) = *reinterpret_cast<const Word*>(p);
    } else {
#pragma unroll
      for (int l = 0; l < L; ++l) at[l] = p[l];
    }
  }
  __device__ __forceinline__ void store(Bits* p, bool aligned) const {
    if (aligned) {
      *reinterpret_cast<Word*>(p) = *reinterpret_cast<const Word*>(at);
    } else {
#pragma unroll
      for (int l = 0; l < L; ++l) p[l] = at[l];
    }
  }
};

// Byte l of rank[k] counts what beats element k of lane l of a thread.
template <class Bits, int W>
__global__ void __launch_bounds__(kThreads, kLanesBlocksPerSm) nm_lanes_kernel(Bits* x, uint8_t* mask, NmShape s, NmOrder order, bool apply) {
  constexpr int L = nm_lanes(W);
  const bool aligned = is_aligned(x, L * sizeof(Bits)), mask_aligned = is_aligned(mask, L);
  const int64_t parts = s.inner / L, units = s.outer * s.per_line * parts, stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; at < units; at += stride) {
    const Divided unit = divide(at, parts), group = divide(unit.quotient, s.per_line);
    const int64_t first = group.remainder * s.m, begin = (group.quotient * s.length + first) * s.inner + unit.remainder * L;
    const int count = static_cast<int>(min(static_cast<int64_t>(s.m), s.length - first));
    Lanes<Bits, L> raw[W];
#pragma unroll
    for (int k = 0; k < W; ++k)
      if (k < count) raw[k].load(x + begin + k * s.inner, aligned);
    int key[W][L];
#pragma unroll
    for (int k = 0; k < W; ++k) {
      uint32_t word[L];
#pragma unroll
      for (int l = 0; l < L; ++l) word[l] = k < count ? in_word(raw[k].at[l]) : 0;
      nm_keys(order, word, key[k]);
#pragma unroll
      for (int l = 0; l < L; ++l)
        if (k >= count) key[k][l] = kAbsent;
    }
    unsigned rank[W];
#pragma unroll
    for (int k = 0; k < W; ++k) rank[k] = k * 0x01010101u;
#pragma unroll
    for (int i = 0; i < W; ++i)
#pragma unroll
      for (int j = i + 1; j < W; ++j) {
        unsigned later = 0;
#pragma unroll
        for (int l = 0; l < L; ++l)
          if (key[j][l] > key[i][l]) later += 1u << 8 * l;
        rank[i] += later;
        rank[j] -= later;
      }
#pragma unroll
    for (int k = 0; k < W; ++k) {
      if (k >= count) continue;
      const int64_t place = begin + k * s.inner;
      const unsigned kept = kept_bytes(rank[k], s.n);
      if (apply) {
#pragma unroll
        for (int l = 0; l < L; ++l)
          if (!(kept >> 8 * l & 1)) raw[k].at[l] = 0;
        raw[k].store(x + place, aligned);
      } else if (mask_aligned) {
        if (L == 4) *reinterpret_cast<unsigned*>(mask + place) = kept;
        else *reinterpret_cast<uint16_t*>(mask + place) = static_cast<uint16_t>(kept);
      } else {
#pragma unroll
        for (int l = 0; l < L; ++l) mask[place + l] = kept >> 8 * l & 1;
      }
    }
  }
}

// ---- any groups ----

struct NmTile {
  void *x, *out;
  NmShape shape;
  NmOrder order;
  NmOutput output;
  bool narrow;  // two bytes to an element

  // Where a group of one line after the other begins; that of the last but one, where the array ends.
  __device__ __forceinline__ int64_t begin(int64_t group) const {
    const Divided at = divide(group, shape.per_line);
    return at.quotient * shape.length + at.remainder * shape.m;
  }
};

// `count` elements from p on into the tile; in groups of 16 bytes, but for the first and the last few.
template <class Bits>
__device__ __forceinline__ void load_tile(const Bits* p, int count, uint32_t* tile) {
  constexpr int N = 16 / sizeof(Bits);
  const int self = static_cast<int>(threadIdx.x);
  const int head = min(count, static_cast<int>((0 - reinterpret_cast<uintptr_t>(p)) % 16 / sizeof(Bits))), groups = (count - head) / N;
#pragma unroll 4
  for (int j = self; j < groups; j += kTileThreads) {
    const Group<Bits, N> raw = load_group<Bits, N, Cache::stream>(p + head + j * N, true);
#pragma unroll
    for (int k = 0; k < N; ++k) tile[in_tile(head + j * N + k)] = in_word(raw.at[k]);
  }
  if (self < head) tile[in_tile(self)] = in_word(p[self]);
  if (const int i = head + groups * N + self; i < count) tile[in_tile(i)] = in_word(p[i]);
}

template <class Bits>
__device__ __forceinline__ void store_tile(Bits* p, int count, const uint32_t* tile) {
  constexpr int N = 16 / sizeof(Bits);
  const int self = static_cast<int>(threadIdx.x);
  const int head = min(count, static_cast<int>((0 - reinterpret_cast<uintptr_t>(p)) % 16 / sizeof(Bits))), groups = (count - head) / N;
  for (int j = self; j < groups; j += kTileThreads) {
    Group<Bits, N> raw;
#pragma unroll
    for (int k = 0; k < N; ++k) from_word(tile[in_tile(head + j * N + k)], raw.at[k]);
    store_group(p + head + j * N, raw, true);
  }
  if (self < head) from_word(tile[in_tile(self)], p[self]);
  if (const int i = head + groups * N + self; i < count) from_word(tile[in_tile(i)], p[i]);
}

// Words of the tile that are 0 or 1, as bytes.
__device__ __forceinline__ void store_bools(uint8_t* p, int count, const uint32_t* tile) {
  const int self = static_cast<int>(threadIdx.x), head = min(count, static_cast<int>((0 - reinterpret_cast<uintptr_t>(p)) % 4));
  const int groups = (count - head) / 4;
  for (int j = self; j < groups; j += kTileThreads) {
    unsigned four = 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) four |= tile[in_tile(head + 4 * j + k)] << 8 * k;
    *reinterpret_cast<unsigned*>(p + head + 4 * j) = four;
  }
  if (self < head) p[self] = static_cast<uint8_t>(tile[in_tile(self)]);
  if (const int i = head + groups * 4 + self; i < count) p[i] = static_cast<uint8_t>(tile[in_tile(i)]);
}

// The same as bits; p is the word of the tile's first element.
__device__ __forceinline__ void store_bits(unsigned* p, int count, const uint32_t* tile) {
  for (int i = static_cast<int>(threadIdx.x); i < (count + 31) / 32 * 32; i += kTileThreads) {
    const unsigned word = __ballot_sync(kAllLanes, i < count && tile[in_tile(i)]);
    if (lane_id() == 0) p[i / 32] = word;
  }
}

// Groups of one line behind the other come through the tile, and go; those across lines lie side by side for neighbouring
// threads, and the tile only keeps what each has read.
template <int W>
__global__ void __launch_bounds__(kTileThreads, W == 64   ? 4
                                                : W == 32 ? 6
                                                          : 8) nm_tile_kernel(const __grid_constant__ NmTile a) {
  __shared__ uint32_t tile[kTileWords<W>];
  const NmShape& s = a.shape;
  const bool behind = s.inner == 1;
  const int self = static_cast<int>(threadIdx.x);
  const int64_t all = s.groups();
  for (int64_t base = static_cast<int64_t>(blockIdx.x) * kTileThreads; base < all; base += static_cast<int64_t>(gridDim.x) * kTileThreads) {
    const int64_t mine = min(base + self, all), tile_begin = behind ? a.begin(base) : 0;
    const int total = behind ? static_cast<int>(a.begin(min(base + kTileThreads, all)) - tile_begin) : 0;
    if (behind) {
      if (a.narrow) load_tile(static_cast<const uint16_t*>(a.x) + tile_begin, total, tile);
      else load_tile(static_cast<const uint32_t*>(a.x) + tile_begin, total, tile);
      __syncthreads();
    }
    if (mine < all) {
      const Divided lane = divide(mine, s.inner), group = divide(lane.quotient, s.per_line);
      const int64_t first = group.remainder * s.m, begin = (group.quotient * s.length + first) * s.inner + lane.remainder;
      const int count = static_cast<int>(min(static_cast<int64_t>(s.m), s.length - first));
      const int place = static_cast<int>(begin - tile_begin);  // across lines it means nothing
      const auto at = [&](int k) { return behind ? in_tile(place + k) : k * kTileThreads + self; };
      int key[W];
      if (!behind) {
#pragma unroll
        for (int k = 0; k < W; ++k)
          if (k < count)
            key[k] = static_cast<int>(a.narrow ? in_word(static_cast<const uint16_t*>(a.x)[begin + k * s.inner])
                                               : static_cast<const uint32_t*>(a.x)[begin + k * s.inner]);
#pragma unroll
        for (int k = 0; k < W; ++k)
          if (k < count) tile[at(k)] = static_cast<uint32_t>(key[k]);
      }
#pragma unroll
      for (int k = 0; k < W; ++k) key[k] = k < count ? nm_key(tile[at(k)], a.order.infinity, a.order.use_abs) : kAbsent;
      Threshold threshold = nth_largest(key, min(s.n, count));
      for (int k = 0; k < count; ++k) {
        const uint32_t word = tile[at(k)];
        const bool keep = threshold.keeps(nm_key(word, a.order.infinity, a.order.use_abs));
        const int64_t e = begin + k * s.inner;
        if (behind) tile[at(k)] = a.output == NmOutput::apply ? (keep ? word : 0) : keep;
        else if (a.output != NmOutput::apply) static_cast<uint8_t*>(a.out)[e] = keep;
        else if (!keep && a.narrow) static_cast<uint16_t*>(a.x)[e] = 0;
        else if (!keep) static_cast<uint32_t*>(a.x)[e] = 0;
      }
    }
    if (!behind) continue;
    __syncthreads();
    if (a.output == NmOutput::bools) store_bools(static_cast<uint8_t*>(a.out) + tile_begin, total, tile);
    else if (a.output == NmOutput::bits) store_bits(static_cast<unsigned*>(a.out) + tile_begin / 32, total, tile);
    else if (a.narrow) store_tile(static_cast<uint16_t*>(a.x) + tile_begin, total, tile);
    else store_tile(static_cast<uint32_t*>(a.x) + tile_begin, total, tile);
    __syncthreads();
  }
}

// ---- 2:4 along rows and columns ----

constexpr float kTransposableLimit = transposable_limit<float>();

// What is too large to be added up safely is cut off; NaN is 0.
__device__ __forceinline__ float bounded_magnitude(float x) {
  const float size = fabsf(x);
  return size > kTransposableLimit ? kTransposableLimit : size == size ? size : 0.f;
}

template <int p>
__device__ __forceinline__ void try_pattern(const float (&half)[2][36], float& best, unsigned& which) {
  constexpr int top = kTransposable.top[p], bottom = kTransposable.bottom[p];
  constexpr unsigned bits = kTransposable.bits[p];
  const float sum = __fadd_rn(half[0][top], half[1][bottom]);
  if (p > 0 && !(sum > best)) return;
  best = sum;
  which = bits;
}

template <int... p>
__device__ __forceinline__ unsigned best_pattern(const float (&half)[2][36], std::integer_sequence<int, p...>) {
  float best = 0;
  unsigned which = 0;
  (try_pattern<p>(half, best, which), ...);
  return which;
}

template <int... p>
__device__ __forceinline__ void pair_sums(const float (&x)[4], float (&sum)[6], std::integer_sequence<int, p...>) {
  constexpr int left[] = {kKeptPairs[p][0]...}, right[] = {kKeptPairs[p][1]...};
  ((sum[p] = __fadd_rn(x[left[p]], x[right[p]])), ...);
}

// A thread has one block; neighbouring threads neighbouring blocks, so that its four rows are read whole.
template <class T>
__global__ void __launch_bounds__(kTileThreads, 4) nm_transposable_kernel(const T* x, uint8_t* mask, int64_t bands, int64_t blocks) {
  const bool aligned = is_aligned(x, 4 * sizeof(T)), mask_aligned = is_aligned(mask, 4);
  const int64_t all = bands * blocks, stride = static_cast<int64_t>(gridDim.x) * kTileThreads;
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * kTileThreads + threadIdx.x; b < all; b += stride) {
    const Divided at = divide(b, blocks);
    const int64_t begin = (at.quotient * 4 * blocks + at.remainder) * 4;  // a row has 4 blocks elements
    Group<T, 4> raw[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) raw[i] = load_group<T, 4, Cache::stream>(x + begin + i * 4 * blocks, aligned);
    float pair[4][6], half[2][36];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float row[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) row[k] = bounded_magnitude(to_float(raw[i].at[k]));
      pair_sums(row, pair[i], std::make_integer_sequence<int, 6>());
    }
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int p = 0; p < 36; ++p) half[h][p] = __fadd_rn(pair[2 * h][p / 6], pair[2 * h + 1][p % 6]);
    const unsigned which = best_pattern(half, std::make_integer_sequence<int, kTransposablePatterns>());
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned four = which >> 4 * i & 15, bytes = four * 0x00204081u & 0x01010101u;
      uint8_t* const to = mask + begin + i * 4 * blocks;
      if (mask_aligned) {
        *reinterpret_cast<unsigned*>(to) = bytes;
      } else {
#pragma unroll
        for (int k = 0; k < 4; ++k) to[k] = bytes >> 8 * k & 1;
      }
    }
  }
}

}  // namespace sparsekern::cuda
