// Barriers, warp collectives, atomics and bit tricks by their CUDA names, for simt.h.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

using std::max;
using std::min;

inline void __syncthreads() { simt::Machine::get().wait(simt::Fiber::at_block, 0, "__syncthreads"); }
inline int __syncthreads_count(int p) { return simt::block_count(p, "__syncthreads_count"); }
inline int __syncthreads_or(int p) { return simt::block_count(p, "__syncthreads_or") != 0; }
inline int __syncthreads_and(int p) { return simt::block_count(!p, "__syncthreads_and") == 0; }
inline void __syncwarp(unsigned mask = ~0u) { simt::Machine::get().wait(simt::Fiber::at_warp, mask, "__syncwarp"); }
inline void __threadfence() {}
inline void __threadfence_block() {}

// A source outside the segment of `width` lanes, or outside the mask, leaves a lane its own value (CUDA: undefined).
namespace simt {
template <class T, class Source>
T shuffle_from(unsigned mask, T value, int width, const char* what, Source source) {
  const int self = static_cast<int>(lane()), low = self & ~(width - 1);
  return exchange(mask, value, what, [&](const T* values, unsigned present) {
    const int from = source(self - low);
    return from >= 0 && from < width && (present >> (low + from) & 1) ? values[low + from] : value;
  });
}
}  // namespace simt
template <class T>
T __shfl_sync(unsigned mask, T v, int source, int width = 32) {
  return simt::shuffle_from(mask, v, width, "__shfl_sync", [&](int) { return source & (width - 1); });
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32) {
  return simt::shuffle_from(mask, v, width, "__shfl_xor_sync", [&](int at) { return at ^ bits; });
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32) {
  return simt::shuffle_from(mask, v, width, "__shfl_down_sync", [&](int at) { return at + static_cast<int>(delta); });
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32) {
  return simt::shuffle_from(mask, v, width, "__shfl_up_sync", [&](int at) { return at - static_cast<int>(delta); });
}

namespace simt {
template <class T>
unsigned lanes_where(unsigned mask, T value, const char* what, const std::function<bool(T)>& holds) {
  return exchange(mask, value, what, [&](const T* values, unsigned present) {
    unsigned lanes = 0;
    for (unsigned k = 0; k < 32; ++k)
      if ((present >> k & 1) && holds(values[k])) lanes |= 1u << k;
    return lanes;
  });
}
template <class T, class Op>
T reduce(unsigned mask, T value, const char* what, Op op) {
  return exchange(mask, value, what, [&](const T* values, unsigned present) {
    T result = value;
    bool first = true;
    for (unsigned k = 0; k < 32; ++k)
      if (present >> k & 1) result = first ? values[k] : op(result, values[k]), first = false;
    return result;
  });
}
}  // namespace simt
inline unsigned __ballot_sync(unsigned mask, int p) {
  return simt::lanes_where<int>(mask, p, "__ballot_sync", [](int v) { return v != 0; });
}
inline int __any_sync(unsigned mask, int p) {
  return simt::lanes_where<int>(mask, p, "__any_sync", [](int v) { return v != 0; }) != 0;
}
inline int __all_sync(unsigned mask, int p) {
  return simt::lanes_where<int>(mask, p, "__all_sync", [](int v) { return v == 0; }) == 0;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T v) {
  return simt::lanes_where<T>(mask, v, "__match_any_sync", [v](T other) { return other == v; });
}
template <class T>
T __reduce_add_sync(unsigned mask, T v) {
  return simt::reduce(mask, v, "__reduce_add_sync", [](T a, T b) { return a + b; });
}
template <class T>
T __reduce_min_sync(unsigned mask, T v) {
  return simt::reduce(mask, v, "__reduce_min_sync", [](T a, T b) { return std::min(a, b); });
}
template <class T>
T __reduce_max_sync(unsigned mask, T v) {
  return simt::reduce(mask, v, "__reduce_max_sync", [](T a, T b) { return std::max(a, b); });
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned v) {
  return simt::reduce(mask, v, "__reduce_or_sync", [](unsigned a, unsigned b) { return a | b; });
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned v) {
  return simt::reduce(mask, v, "__reduce_and_sync", [](unsigned a, unsigned b) { return a & b; });
}

// Fibers switch only at barriers, so a plain read-modify-write is atomic here.
#define SK_SIMT_ATOMIC(name, expression)       \
  template <class T>                           \
  T name(T* at, std::common_type_t<T> value) { \
    const T old = *at;                         \
    *at = (expression);                        \
    return old;                                \
  }
SK_SIMT_ATOMIC(atomicAdd, old + value)
SK_SIMT_ATOMIC(atomicSub, old - value)
SK_SIMT_ATOMIC(atomicOr, old | value)
SK_SIMT_ATOMIC(atomicAnd, old& value)
SK_SIMT_ATOMIC(atomicXor, old ^ value)
SK_SIMT_ATOMIC(atomicMin, std::min(old, value))
SK_SIMT_ATOMIC(atomicMax, std::max(old, value))
SK_SIMT_ATOMIC(atomicExch, value)
#undef SK_SIMT_ATOMIC
template <class T>
T atomicCAS(T* at, std::common_type_t<T> expected, std::common_type_t<T> value) {
  const T old = *at;
  if (old == expected) *at = value;
  return old;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline unsigned __brev(unsigned x) {
  unsigned r = 0;
  for (int k = 0; k < 32; ++k) r |= (x >> k & 1) << (31 - k);
  return r;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32); }

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, T v) {
  *p = v;
}
template <class T>
void __stcg(T* p, T v) {
  *p = v;
}

// Compile with -ffp-contract=off, or the compiler fuses what these keep apart.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
