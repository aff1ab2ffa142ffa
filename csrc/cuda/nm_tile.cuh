// The n largest of every m neighbours for groups of any kind: short ones, m up to 64, lines of any width. A tile of groups lies
// in shared memory, a thread to a group; a network sorts its keys in registers, and the n-th largest and the number above it say
// what is kept.
// Bytes and bounds: nm_mask.cuh. About 20 bytes of shared memory traffic per element beside.
// State: compiled for sm_80 and sm_90a and run under the emulator of csrc/simt; not yet run on a GPU, no time measured.
//
// budget: nm_tile_kernel 64
// budget: nm_tile_kernel<32 80
// budget: nm_tile_kernel<64 128
// promise: nm_tile_kernel LDG.E.128 no-fp64
#pragma once
#include "cuda/collective.cuh"
#include "cuda/nm_mask.cuh"

namespace sparsekern::cuda {

struct NmTile {
  void *x, *out;
  NmShape shape;
  NmOrder order;
  NmOutput output;
  bool narrow;  // two bytes to an element

  // Where a group of one line after the other begins; `groups` itself: where the array ends.
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
__global__ void __launch_bounds__(kTileThreads, kTileBlocksPerSm<W>) nm_tile_kernel(const __grid_constant__ NmTile a) {
  __shared__ uint32_t tile[kTileWords<W>];
  const NmShape& s = a.shape;
  const bool behind = s.inner == 1;
  const int self = static_cast<int>(threadIdx.x);
  const int64_t all = s.groups();
  for (int64_t base = static_cast<int64_t>(blockIdx.x) * kTileGroups<W>; base < all; base += static_cast<int64_t>(gridDim.x) * kTileGroups<W>) {
    const int64_t tile_begin = behind ? a.begin(base) : 0;
    const int total = behind ? static_cast<int>(a.begin(min(base + kTileGroups<W>, all)) - tile_begin) : 0;
    if (behind) {
      if (a.narrow) load_tile(static_cast<const uint16_t*>(a.x) + tile_begin, total, tile);
      else load_tile(static_cast<const uint32_t*>(a.x) + tile_begin, total, tile);
      __syncthreads();
    }
#pragma unroll 1
    for (int64_t mine = base + self; mine < min(base + kTileGroups<W>, all); mine += kTileThreads) {
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

}  // namespace sparsekern::cuda
