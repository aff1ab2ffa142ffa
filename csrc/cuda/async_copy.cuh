// Copies of 16 bytes from global to shared memory that pass no register and are waited for together (sm_80 and later).
// Both addresses are multiples of 16. The host twin copies at once.
#pragma once
#include "simt/simt.h"

namespace sparsekern::cuda {

__device__ __forceinline__ void copy16_async(void* shared, const void* global) {
#ifdef __CUDACC__
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(shared))), "l"(global) : "memory");
#else
  std::memcpy(shared, global, 16);
#endif
}

// This thread's copies have arrived; a barrier makes those of the others visible.
__device__ __forceinline__ void wait_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Closes a group of copies (it may be empty); and waits for all but the `later` newest groups of this thread.
__device__ __forceinline__ void commit_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int later>
__device__ __forceinline__ void wait_copies_but() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(later) : "memory");
#endif
}

}  // namespace sparsekern::cuda
