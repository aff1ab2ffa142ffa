// The n largest of every m neighbours, -0 as +0, NaN below every number, equal ones by the lowest index.
// Groups of m <= 8, behind each other or across lines: a thread has whole groups in registers and counts for each element those
// that beat it, four counts to a register, so that a pair costs one comparison and one addition; the counts become mask bytes at
// once. Groups of 16 or 32 behind each other: a network sorts a copy of a thread's keys, and the n-th largest and the number
// above it say what is kept. All other groups: nm_tile.cuh.
// Bytes per fp32 element: 4 and 1 (bools), 1/8 (packed) or 4 (apply); bandwidth-bound to m = 16 or so, then by the network's
// comparisons, about log2(m)^2 / 2 per element.
// State: compiled for sm_80 and sm_90a and run under the emulator of csrc/simt; not yet run on a GPU, no time measured.
//
// budget: nm_flat_kernel 64
// budget: nm_lanes_kernel 96
// budget: nm_wide_kernel 80
// budget: nm_wide_kernel<32 128
// promise: nm_flat_kernel LDG.E.128 no-fp64
// promise: nm_lanes_kernel no-fp64
// promise: nm_wide_kernel LDG.E.128 no-fp64
#pragma once
#include "cuda/mask_bytes.cuh"
#include "cuda/nm_keys.cuh"
#include "cuda/nm_mask.h"
#include "cuda/vector_io.cuh"

namespace sparsekern::cuda {

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

// ---- groups of W = 16 or 32, one behind the other ----

template <int W, class Bits>
__global__ void __launch_bounds__(kTileThreads, W == 32 ? 4 : 6)
    nm_wide_kernel(Bits* x, uint8_t* mask, int64_t groups, int n, NmOrder order, NmOutput output) {
  const bool aligned = is_aligned(x, 16), mask_aligned = is_aligned(mask, 16);
  // Packed, half a word may be left behind the last group of 16.
  const int64_t units = output == NmOutput::bits && W == 16 ? (groups + 1) / 2 * 2 : groups, stride = static_cast<int64_t>(gridDim.x) * kTileThreads;
  for (int64_t g = static_cast<int64_t>(blockIdx.x) * kTileThreads + threadIdx.x; g < units; g += stride) {
    unsigned kept = 0;
    Group<Bits, W> raw;
    if (g < groups) {
      raw = load_group<Bits, W>(x + g * W, aligned);
      uint32_t word[W];
      int key[W], sorted[W];
#pragma unroll
      for (int k = 0; k < W; ++k) word[k] = in_word(raw.at[k]);
      nm_keys(order, word, key);
#pragma unroll
      for (int k = 0; k < W; ++k) sorted[k] = key[k];
      Threshold threshold = nth_largest(sorted, n);
#pragma unroll
      for (int k = 0; k < W; ++k)
        if (threshold.keeps(key[k])) kept |= 1u << k;
    }
    if (output == NmOutput::bits) {
      if (W == 32) reinterpret_cast<uint32_t*>(mask)[g] = kept;
      else reinterpret_cast<uint16_t*>(mask)[g] = static_cast<uint16_t>(kept);
    } else if (output == NmOutput::bools) {
      Group<uint8_t, W> bytes;
#pragma unroll
      for (int k = 0; k < W; k += 4) reinterpret_cast<unsigned*>(bytes.at)[k / 4] = bits_to_bytes(kept >> k & 15);
      store_group(mask + g * W, bytes, mask_aligned);
    } else {
#pragma unroll
      for (int k = 0; k < W; ++k)
        if (!(kept >> k & 1)) raw.at[k] = 0;
      store_group(x + g * W, raw, aligned);
    }
  }
}

}  // namespace sparsekern::cuda
