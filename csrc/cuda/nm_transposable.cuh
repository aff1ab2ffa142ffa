// The best of the 90 patterns of a 4 x 4 block that keep two of four in every row and column, by the sum of magnitudes.
// A thread has one block in registers; the search: transposable.cuh. Bytes per fp32 element: 5; 28 operations per element, about as long
// as the bytes take.
// State: compiled for sm_80 and sm_90a and run under the emulator of csrc/simt; not yet run on a GPU, no time measured.
//
// budget: nm_transposable_kernel 64
// promise: nm_transposable_kernel no-fp64
#pragma once
#include "cuda/mask_bytes.cuh"
#include "cuda/nm_keys.cuh"
#include "cuda/transposable.cuh"

namespace sparsekern::cuda {

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
    float size[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int k = 0; k < 4; ++k) size[i][k] = bounded_magnitude(to_float(raw[i].at[k]));
    const unsigned which = best_pattern(size);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned bytes = bits_to_bytes(which >> 4 * i & 15);
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
