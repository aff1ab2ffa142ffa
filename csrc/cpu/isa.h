// Which instruction set the CPU kernels use, and how one kernel file becomes three variants.
//
// A kernel is written once, in <op>.h, over the 16-lane types of simd_<isa>.h, and <op>.cpp compiles it three times:
//     #define SK_KERNEL_FILE "cpu/<op>.h"
//     #include "cpu/for_each_isa.h"
// SK_PICK(name) is then the variant for this CPU. All variants do the same arithmetic in the same order, so results do not
// depend on the choice.
#pragma once
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#define SK_X86 1
#else
#define SK_X86 0
#endif

#define SK_INLINE inline __attribute__((always_inline))

namespace sparsekern {

constexpr int kLanes = 16;
using Mask16 = uint16_t;  // one bit per lane, in every variant

// The type arithmetic is done in: fp32 for everything but fp64.
template <class T>
using Arith = std::conditional_t<std::is_same_v<T, double>, double, float>;

enum class Isa : int { scalar = 0, avx2 = 1, avx512 = 2 };

Isa isa();  // the variant in use: SPARSEKERN_ISA, or the best this CPU has

}  // namespace sparsekern

#if SK_X86
#define SK_PICK(...)                                                                     \
  (::sparsekern::isa() == ::sparsekern::Isa::avx512 ? &::sparsekern::avx512::__VA_ARGS__ \
   : ::sparsekern::isa() == ::sparsekern::Isa::avx2 ? &::sparsekern::avx2::__VA_ARGS__   \
                                                    : &::sparsekern::scalar::__VA_ARGS__)
#else
#define SK_PICK(...) (&::sparsekern::scalar::__VA_ARGS__)
#endif
