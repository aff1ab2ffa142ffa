// The dense form of a CSR matrix, for a dense product where that is cheaper, and whether the dense operand b is finite: a
// zero that is not stored may not turn an inf of b into NaN, so that product only counts while every number of b is finite.
// csr_densify_kernel: the first `checks` blocks read b and write a flag each; the others make rows in shared memory, scatter
// their entries and write them in 16-byte groups. Bytes: rows * width * size(b) written, nnz * (4 + size(val)) and b read;
// bandwidth-bound.
// State: compiled for sm_80 and sm_90a and run under the emulator of csrc/simt; not yet run on a GPU, no time measured.
//
// budget: csr_densify_kernel 48
// promise: csr_densify_kernel STG.E.128 LDG.E.128 no-fp64
#pragma once
#include "cuda/csr_product.cuh"

namespace sparsekern::cuda {

constexpr int kSegmentBytes = 16384;  // of a row at a time

__device__ __forceinline__ bool not_finite(float x) { return (__float_as_uint(x) & 0x7f800000u) == 0x7f800000u; }

// Whether this thread found an inf or NaN in its share of b: warps take lines of unit stride.
template <class T>
__device__ __forceinline__ bool meets_not_finite(const SpmmArgs& a, int block, int blocks) {
  constexpr int N = 16 / sizeof(T);
  const bool rows = a.b_col == 1;
  const int64_t lines = rows ? a.cols : a.n, length = rows ? a.n : a.cols, stride = rows ? a.b_row : a.b_col;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  bool bad = false;
  for (int64_t line = static_cast<int64_t>(block) * (kThreads / 32) + threadIdx.x / 32; line < lines;
       line += static_cast<int64_t>(blocks) * (kThreads / 32)) {
    const T* from = static_cast<const T*>(a.b) + line * stride;
    const bool aligned = is_aligned(from, 16);
    for (int64_t j = lane * N; j < length; j += 32 * N) {
      if (j + N <= length) {
        const Group<T, N> group = load_group<T, N>(from + j, aligned);
#pragma unroll
        for (int k = 0; k < N; ++k) bad |= not_finite(widened(group.at[k]));
      } else {
        for (int64_t k = j; k < length; ++k) bad |= not_finite(widened(from[k]));
      }
    }
  }
  return bad;
}

// dense[rows, width], width >= cols and a multiple of 16 bytes; flags[checks].
template <class T, class V, class A>
__device__ __forceinline__ void make_dense(const A& a, T* dense, int64_t width, int32_t* flags, int checks) {
  constexpr int N = 16 / sizeof(T), kSegment = kSegmentBytes / sizeof(T);
  __shared__ Group<T, N> line[kSegment / N];
  const int self = static_cast<int>(threadIdx.x), block = static_cast<int>(blockIdx.x);
  if (block < checks) {
    const int any = __syncthreads_or(meets_not_finite<T>(a, block, checks));
    if (self == 0) flags[block] = any;
    return;
  }
  const auto* val = static_cast<const V*>(a.val);
  for (int64_t row = block - checks; row < a.rows; row += gridDim.x - checks) {
    const RowRange range = row_range(a, row);
    const auto columns = columns_of(a, row);
    for (int64_t k0 = 0; k0 < width; k0 += kSegment) {
      const int groups = static_cast<int>((width - k0 < kSegment ? width - k0 : kSegment) / N);
      // A thread clears the groups that it writes out, so only the scatter stands between barriers.
      for (int i = self; i < groups; i += kThreads) *reinterpret_cast<uint4*>(&line[i]) = uint4{0, 0, 0, 0};
      __syncthreads();
      for (int64_t e = range.begin + self; e < range.end; e += kThreads) {
        const int64_t k = columns(e) - k0;
        if (k >= 0 && k < kSegment) reinterpret_cast<T*>(line)[k] = narrowed<T>(widened(val[a.perm ? a.perm[e] : e]));
      }
      __syncthreads();
      for (int i = self; i < groups; i += kThreads) store_group(dense + row * width + k0 + static_cast<int64_t>(i) * N, line[i], true);
    }
  }
}

template <class T, class V>
__global__ void __launch_bounds__(kThreads)
    csr_densify_kernel(const __grid_constant__ SpmmArgs a, T* dense, int64_t width, int32_t* flags, int checks) {
  make_dense<T, V>(a, dense, width, flags, checks);
}
template <class T, class V>
auto densify_kernel(const SpmmArgs&) {
  return &csr_densify_kernel<T, V>;
}

}  // namespace sparsekern::cuda
