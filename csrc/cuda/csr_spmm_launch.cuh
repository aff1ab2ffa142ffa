// Launchers of the kernels that any form of a sparse matrix shares: A is SpmmArgs, or what is made of it.
#pragma once
#include <algorithm>

#include "cuda/csr_densify.cuh"
#include "cuda/csr_spmm.cuh"

namespace sparsekern::cuda {

constexpr int kGuardedBlocksPerSm = 4;  // of a launch that will most likely have nothing to do

// fn(zero of b's type, zero of the values' type); float64 only where `wide_too`.
template <bool wide_too, class Fn>
int with_types(SpmmType type, SpmmType val_type, const Fn& fn) {
  if (type == SpmmType::f32) return fn(float{}, float{});
  if (type == SpmmType::bf16) return val_type == SpmmType::f32 ? fn(__nv_bfloat16{}, float{}) : fn(__nv_bfloat16{}, __nv_bfloat16{});
  if (type == SpmmType::f16) return val_type == SpmmType::f32 ? fn(__half{}, float{}) : fn(__half{}, __half{});
  if constexpr (wide_too) return fn(double{}, double{});
  else return static_cast<int>(cudaErrorInvalidValue);
}

inline bool row_major(const SpmmArgs& a) { return a.b_col == 1 && (a.b_row >= a.n || a.cols <= 1); }
inline int64_t whole_groups(const SpmmArgs& a) {  // the length of a row of b in whole 16-byte groups
  const int64_t n = 16 / bytes_of(a.type);
  return (a.n + n - 1) / n * n;
}
inline bool groups_aligned(const SpmmArgs& a) {  // rows of b can be read in 16-byte groups to their end
  return a.b_col == 1 && reinterpret_cast<uintptr_t>(a.b) % 16 == 0 && a.b_row * bytes_of(a.type) % 16 == 0 && a.b_row >= whole_groups(a);
}
inline bool store_aligned(const SpmmArgs& a) {
  return a.out_col == 1 && reinterpret_cast<uintptr_t>(a.out) % 16 == 0 && a.out_row * bytes_of(a.type) % 16 == 0;
}

template <class T, class V, int N, class A>
int scalar_launch(const A& a, const DeviceProps& props, cudaStream_t stream) {
  int lane_bits = 0;
  while (lane_bits < 5 && (int64_t{1} << lane_bits) * N < a.n) ++lane_bits;
  const int64_t sets = (a.rows + (32 >> lane_bits) - 1) >> (5 - lane_bits), chunks = (a.n + (N << lane_bits) - 1) / (N << lane_bits);
  const int64_t most = a.guard ? props.sms * kGuardedBlocksPerSm : int64_t{1} << 30;
  const unsigned grid = static_cast<unsigned>(std::clamp<int64_t>((sets + kThreads / 32 - 1) / (kThreads / 32), 1, most));
  const unsigned across = static_cast<unsigned>(std::min<int64_t>(chunks, a.guard ? 1 : 65535));
  SK_LAUNCH((scalar_kernel<N, T, V>(a)), dim3(grid, across), kThreads, 0, stream, a, lane_bits, store_aligned(a));
  return static_cast<int>(cudaGetLastError());
}

template <class A>
int scalar(const A& a, const DeviceProps& props, cudaStream_t stream) {
  return with_types<true>(a.type, a.val_type, [&](auto zero, auto value) {
    using T = decltype(zero);
    using V = decltype(value);
    return groups_aligned(a) && !a.perm ? scalar_launch<T, V, 16 / sizeof(T)>(a, props, stream) : scalar_launch<T, V, 1>(a, props, stream);
  });
}

template <class A>
int densify(const A& a, void* dense, int64_t width, int32_t* flags, const DeviceProps& props, cudaStream_t stream) {
  const int checks = densify_checks(props);
  const int grid = checks + static_cast<int>(std::min<int64_t>(a.rows, props.sms * 8));
  return with_types<false>(a.type, a.val_type, [&](auto zero, auto value) {
    using T = decltype(zero);
    SK_LAUNCH((densify_kernel<T, decltype(value)>(a)), grid, kThreads, 0, stream, a, static_cast<T*>(dense), width, flags, checks);
    return static_cast<int>(cudaGetLastError());
  });
}

}  // namespace sparsekern::cuda
