// A hint to bring a line of memory near.
#pragma once
#include "simt/simt.h"

namespace sparsekern::cuda {

__device__ __forceinline__ void prefetch_l2(const void* p) {
#ifdef __CUDACC__
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
#else
  (void)p;
#endif
}

}  // namespace sparsekern::cuda
