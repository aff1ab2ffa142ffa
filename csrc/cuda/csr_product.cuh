// What the kernels of the CSR products share: the resolved operands, rows, and how a result is written.
#pragma once
#include "cuda/csr_spmm.h"
#include "cuda/vector_io.cuh"

namespace sparsekern::cuda {

template <class T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ __forceinline__ float widened(float x) { return x; }
__device__ __forceinline__ float widened(__nv_bfloat16 x) { return to_float(x); }
__device__ __forceinline__ float widened(__half x) { return to_float(x); }
__device__ __forceinline__ double widened(double x) { return x; }
// The numbers of a group. bfloat16 two at a time: one instruction each.
template <class T, int N>
__device__ __forceinline__ void widen_group(const Group<T, N>& group, Sum<T> (&to)[N]) {
  if constexpr (std::is_same_v<T, __nv_bfloat16> && N % 2 == 0) {
#pragma unroll
    for (int k = 0; k < N; k += 2) {
      const unsigned two = reinterpret_cast<const unsigned*>(&group)[k / 2];
      to[k] = __uint_as_float(two << 16);
      to[k + 1] = __uint_as_float(two & 0xffff0000u);
    }
  } else {
#pragma unroll
    for (int k = 0; k < N; ++k) to[k] = widened(group.at[k]);
  }
}
template <class T>
__device__ __forceinline__ T narrowed(float x) {
  return from_float<T>(x);
}
template <class T>
__device__ __forceinline__ T narrowed(double x) {
  return x;
}
__device__ __forceinline__ float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ double fused(double a, double b, double c) { return fma(a, b, c); }

// A term of -0 leaves every sum its bits, also a sum of -0: what stands where there is no entry.
template <class S>
__device__ __forceinline__ S no_weight() {
  return S(-0.0f);
}

struct RowRange {
  int64_t begin, end;
};

__device__ __forceinline__ RowRange row_range(const SpmmArgs& a, int64_t row) {
  if (a.wide_crow) {
    const auto* crow = static_cast<const int64_t*>(a.crow);
    return {crow[row], crow[row + 1]};
  }
  const auto* crow = static_cast<const int32_t*>(a.crow);
  return {crow[row], crow[row + 1]};
}

// The column of a row's entry e; the N:M product has its own of both.
struct CsrColumns {
  const int32_t* col;
  __device__ __forceinline__ int32_t operator()(int64_t e) const { return col[e]; }
};
__device__ __forceinline__ CsrColumns columns_of(const SpmmArgs& a, int64_t) { return {a.col}; }

// Whether there is something to do; by whole blocks.
__device__ __forceinline__ bool guard_open(const SpmmArgs& a) {
  if (a.guard == nullptr) return true;
  int32_t any = 0;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < a.guards; i += static_cast<int>(blockDim.x)) any |= a.guard[i];
  return __syncthreads_or(any) != 0;
}

template <class T>
__device__ __forceinline__ Sum<T> bias_at(const SpmmArgs& a, int64_t row) {
  if (a.bias == nullptr) return 0;
  if (a.bias_type == a.type) return widened(static_cast<const T*>(a.bias)[row]);
  return static_cast<const float*>(a.bias)[row];
}

// N neighbouring columns of one row of the result, from column j on; those past the last one are left out.
template <class T, int N>
__device__ __forceinline__ void store_sums(const SpmmArgs& a, int64_t row, int64_t j, const Sum<T> (&sum)[N], Sum<T> bias, bool aligned) {
  T* out = static_cast<T*>(a.out) + row * a.out_row + j * a.out_col;
  Group<T, N> group;
#pragma unroll
  for (int k = 0; k < N; ++k) group.at[k] = narrowed<T>(a.bias ? sum[k] + bias : sum[k]);
  if (sizeof(group) == 16 && aligned && j + N <= a.n) {
    __stcg(reinterpret_cast<uint4*>(out), *reinterpret_cast<const uint4*>(&group));  // an ordinary store is split up here
    return;
  }
#pragma unroll
  for (int k = 0; k < N; ++k)
    if (j + k < a.n) out[k * a.out_col] = group.at[k];
}

}  // namespace sparsekern::cuda
