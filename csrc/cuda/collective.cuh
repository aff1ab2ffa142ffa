// Sums and scans of a warp or a block in a fixed tree: the same bits in every run.
#pragma once
#include "simt/simt.h"

namespace sparsekern::cuda {

constexpr unsigned kAllLanes = ~0u;

__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x & 31); }
__device__ __forceinline__ int warp_id() { return static_cast<int>(threadIdx.x >> 5); }

// Every lane gets the sum.
template <class T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

// The sum over the lanes up to and with this one.
template <class T>
__device__ __forceinline__ T warp_inclusive_sum(T x) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const T below = __shfl_up_sync(kAllLanes, x, step);
    if (lane_id() >= step) x += below;
  }
  return x;
}

// Every thread gets the sum. `scratch` is shared memory for one T per warp; whole warps, and all threads take part.
template <int threads, class T>
__device__ __forceinline__ T block_sum(T x, T* scratch) {
  constexpr int warps = threads / 32;
  static_assert(threads % 32 == 0 && warps <= 32);
  x = warp_sum(x);
  __syncthreads();  // an earlier use of scratch is over
  if (lane_id() == 0) scratch[warp_id()] = x;
  __syncthreads();
  T sum = scratch[0];
#pragma unroll
  for (int w = 1; w < warps; ++w) sum += scratch[w];
  return sum;
}

// The sum over the threads before this one; `total` is that of all.
template <int threads, class T>
__device__ __forceinline__ T block_exclusive_sum(T x, T* scratch, T& total) {
  constexpr int warps = threads / 32;
  static_assert(threads % 32 == 0 && warps <= 32);
  const T inclusive = warp_inclusive_sum(x);
  __syncthreads();
  if (lane_id() == 31) scratch[warp_id()] = inclusive;
  __syncthreads();
  T before = 0;
  total = 0;
#pragma unroll
  for (int w = 0; w < warps; ++w) {
    if (w < warp_id()) before += scratch[w];
    total += scratch[w];
  }
  return before + inclusive - x;
}

}  // namespace sparsekern::cuda
