// What is kept of every group of m columns, v rows together, and where it stands: the n columns with the largest sums of
// magnitudes (NaN and inf first), so that the n or fewer that have a non-zero are among them, equal ones by the lowest index.
// A block has a tile of groups of a band of v rows. It adds their magnitudes up in shared memory, row by row; a thread per group
// finds the n-th largest in registers, as nm_mask does, and leaves the places; then the block writes indices and values in the
// order in which they lie in memory, reading the elements a second time, from L1 or L2.
// Bytes per fp32 element: 4, and n / m of (4 + 1 / v); bandwidth-bound to m = 16 or so.
// State: compiled for sm_80 and sm_90a and run under the emulator of csrc/simt; not yet run on a GPU, no time measured.
//
// budget: nm_pack_kernel 64
// budget: nm_pack_kernel<32 80
// budget: nm_pack_kernel<64 128
// promise: nm_pack_kernel no-fp64
#pragma once
#include "cuda/nm_keys.cuh"
#include "cuda/nm_pack.h"

namespace sparsekern::cuda {

struct NmPack {
  NmPackArgs a;
  int64_t tiles_per_band;
  DType type;
};

__device__ __forceinline__ float magnitude_at(const void* x, int64_t i, DType type) {
  if (type == DType::f32) return fabsf(static_cast<const float*>(x)[i]);
  if (type == DType::bf16) return fabsf(to_float(static_cast<const __nv_bfloat16*>(x)[i]));
  return fabsf(to_float(static_cast<const __half*>(x)[i]));
}

// A sum of magnitudes as its rank: its bits, those of inf for NaN.
__device__ __forceinline__ int sum_key(uint32_t word) { return min(static_cast<int>(word & 0x7fffffffu), 0x7f800000); }

// The stored elements of one row of the tile; place[o] is the column of the o-th, from the tile's first on, and its index.
template <class Bits>
__device__ __forceinline__ void copy_kept(const void* from, void* to, int64_t x_begin, int64_t values_begin, int stored, const uint32_t* place) {
  const Bits* x = static_cast<const Bits*>(from) + x_begin;
  Bits* values = static_cast<Bits*>(to) + values_begin;
#pragma unroll 4
  for (int o = static_cast<int>(threadIdx.x); o < stored; o += kTileThreads) values[o] = x[place[in_tile(o)] >> 8];
}

template <int W>
__global__ void __launch_bounds__(kTileThreads, kTileBlocksPerSm<W>) nm_pack_kernel(const __grid_constant__ NmPack p) {
  __shared__ uint32_t tile[kTileWords<W>];  // sums of magnitudes; then the places
  constexpr int R = kGroupsPerThread<W>;
  const NmPackArgs& a = p.a;
  const int self = static_cast<int>(threadIdx.x);
  const int64_t cols = a.groups * a.m, stored_cols = a.groups * a.n, tiles = a.bands * p.tiles_per_band;
  for (int64_t b = blockIdx.x; b < tiles; b += gridDim.x) {
    const Divided at = divide(b, p.tiles_per_band);
    const int64_t first = at.remainder * kTileGroups<W>, row = at.quotient * a.v, begin = row * cols + first * a.m;
    const int groups = static_cast<int>(min(int64_t{kTileGroups<W>}, a.groups - first)), total = groups * a.m, stored = groups * a.n;
    for (int64_t r = 0; r < a.v; ++r) {
#pragma unroll 4
      for (int i = self; i < total; i += kTileThreads) {
        const float size = magnitude_at(a.x, begin + r * cols + i, p.type);
        uint32_t& sum = tile[in_tile(i)];
        sum = __float_as_uint(r == 0 ? size : __fadd_rn(__uint_as_float(sum), size));
      }
    }
    __syncthreads();
    unsigned long long kept[R] = {};
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const int group = self + r * kTileThreads, place = group * a.m;
      if (group >= groups) continue;
      int key[W];
#pragma unroll
      for (int k = 0; k < W; ++k) key[k] = k < a.m ? sum_key(tile[in_tile(place + k)]) : kAbsent;
      Threshold threshold = nth_largest(key, a.n);
      for (int k = 0; k < a.m; ++k)
        if (threshold.keeps(sum_key(tile[in_tile(place + k)]))) kept[r] |= 1ull << k;
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const int group = self + r * kTileThreads;
      int o = group * a.n;
      for (unsigned long long left = kept[r]; left != 0; left &= left - 1, ++o) {
        const uint32_t k = static_cast<uint32_t>(__ffsll(static_cast<long long>(left)) - 1);
        tile[in_tile(o)] = (static_cast<uint32_t>(group * a.m) + k) << 8 | k;
      }
    }
    __syncthreads();
    uint8_t* index = a.index + at.quotient * stored_cols + first * a.n;
    for (int o = self; o < stored; o += kTileThreads) index[o] = static_cast<uint8_t>(tile[in_tile(o)]);
    for (int64_t r = 0; r < a.v; ++r) {
      const int64_t from = begin + r * cols, to = (row + r) * stored_cols + first * a.n;
      if (p.type == DType::f32) copy_kept<uint32_t>(a.x, a.values, from, to, stored, tile);
      else copy_kept<uint16_t>(a.x, a.values, from, to, stored, tile);
    }
    __syncthreads();
  }
}

}  // namespace sparsekern::cuda
