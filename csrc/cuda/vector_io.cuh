// Groups of elements moved in one 16-byte (or 8-byte) access, conversions to fp32, and masks of such groups.
#pragma once
#include <cstdint>

#include "common/mask_view.h"
#include "simt/simt.h"

namespace sparsekern::cuda {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}

template <class T, int N>
struct alignas(sizeof(T) * N) Group {
  T at[N];
};

__device__ __forceinline__ bool is_aligned(const void* p, int bytes) { return (reinterpret_cast<uintptr_t>(p) & (bytes - 1)) == 0; }

enum class Cache { normal, stream };  // stream: read once, evict first

template <Cache cache, class W>
__device__ __forceinline__ W load_word(const void* p) {
  return cache == Cache::stream ? __ldcs(static_cast<const W*>(p)) : *static_cast<const W*>(p);
}

// `aligned` holds for a whole piece, so the branch is uniform.
template <class T, int N, Cache cache = Cache::normal>
__device__ __forceinline__ Group<T, N> load_group(const T* p, bool aligned) {
  constexpr int bytes = sizeof(T) * N;
  Group<T, N> group;
  if (bytes % 16 == 0 && aligned) {
#pragma unroll
    for (int k = 0; k < bytes / 16; ++k) reinterpret_cast<uint4*>(&group)[k] = load_word<cache, uint4>(reinterpret_cast<const uint4*>(p) + k);
  } else if (bytes == 8 && aligned) {
    *reinterpret_cast<uint2*>(&group) = load_word<cache, uint2>(p);
  } else {
#pragma unroll
    for (int k = 0; k < N; ++k) group.at[k] = p[k];
  }
  return group;
}

template <class T, int N>
__device__ __forceinline__ void store_group(T* p, const Group<T, N>& group, bool aligned) {
  constexpr int bytes = sizeof(T) * N;
  if (bytes % 16 == 0 && aligned) {
#pragma unroll
    for (int k = 0; k < bytes / 16; ++k) reinterpret_cast<uint4*>(p)[k] = reinterpret_cast<const uint4*>(&group)[k];
  } else {
#pragma unroll
    for (int k = 0; k < N; ++k) p[k] = group.at[k];
  }
}

// Four bool bytes to four bits. Any nonzero byte counts; what a shift brings in from the next byte stays above bit 0.
__device__ __forceinline__ unsigned bytes_to_bits(unsigned w) {
  w |= w >> 4;
  w |= w >> 2;
  w |= w >> 1;
  return (w & 0x01010101u) * 0x01020408u >> 24 & 15u;
}

// N bits for the elements i .. i + N of a bool mask.
template <int N>
__device__ __forceinline__ unsigned bool_group(const uint8_t* mask, int i, bool aligned) {
  if (N % 4 == 0 && aligned) {
    unsigned bits = 0;
#pragma unroll
    for (int k = 0; k < N / 4; ++k) bits |= bytes_to_bits(*reinterpret_cast<const unsigned*>(mask + i + 4 * k)) << 4 * k;
    return bits;
  }
  unsigned bits = 0;
#pragma unroll
  for (int k = 0; k < N; ++k) bits |= (mask[i + k] != 0 ? 1u : 0u) << k;
  return bits;
}

// The same of a packed mask. Neighbouring threads read the same word: one request per warp. A group crosses into a
// second word only behind a peeled head, and then that word exists.
template <int N>
__device__ __forceinline__ unsigned bit_group(const uint32_t* words, int i) {
  const int shift = i & 31;
  unsigned bits = words[i >> 5] >> shift;
  if (shift + N > 32) bits |= words[(i >> 5) + 1] << (32 - shift);
  return bits & ((1u << N) - 1);
}

// The mask of N elements as it lies in memory, to be asked for several times before the first is looked at: bits that are
// made at once, as above, wait for each load in turn.
struct RawMask {
  unsigned low, high;  // bytes of N bools; or the word that N bits begin in, and the next where they go on there
};

template <int N>
__device__ __forceinline__ RawMask load_mask(MaskKind kind, const void* mask, int i, bool aligned) {
  static_assert(N == 1 || N == 4 || N == 8);
  RawMask raw = {0, 0};
  if (kind == MaskKind::bools) {
    const uint8_t* bytes = static_cast<const uint8_t*>(mask) + i;
    if (N > 1 && aligned) {
      raw.low = *reinterpret_cast<const unsigned*>(bytes);
      if (N == 8) raw.high = *reinterpret_cast<const unsigned*>(bytes + 4);
    } else {
#pragma unroll
      for (int k = 0; k < N; ++k) (k < 4 ? raw.low : raw.high) |= static_cast<unsigned>(bytes[k]) << 8 * (k & 3);
    }
  } else if (kind == MaskKind::bits) {
    const uint32_t* word = static_cast<const uint32_t*>(mask) + (i >> 5);
    raw.low = word[0];
    if ((i & 31) + N > 32) raw.high = word[1];
  }
  return raw;
}

// The N bits of it; all ones without a mask.
template <int N>
__device__ __forceinline__ unsigned mask_bits(MaskKind kind, RawMask raw, int i) {
  constexpr unsigned all = (1u << N) - 1;
  if (kind == MaskKind::bools) return (bytes_to_bits(raw.low) | (N == 8 ? bytes_to_bits(raw.high) << 4 : 0)) & all;
  if (kind == MaskKind::bits) return static_cast<unsigned>((raw.low | static_cast<uint64_t>(raw.high) << 32) >> (i & 31)) & all;
  return all;
}

}  // namespace sparsekern::cuda
