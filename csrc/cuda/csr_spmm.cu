// Launchers of csr_spmm and csr_spmm_t; the kernels are in csr_spmm.cuh.
#include "cuda/csr_spmm.cuh"

#include <algorithm>

namespace sparsekern::cuda {
namespace {

constexpr int kGuardedBlocksPerSm = 4;  // of a launch that will most likely have nothing to do

template <class Fn>
int with_type(SpmmType type, const Fn& fn) {
  if (type == SpmmType::f32) return fn(float{});
  if (type == SpmmType::bf16) return fn(__nv_bfloat16{});
  if (type == SpmmType::f16) return fn(__half{});
  return fn(double{});
}

bool row_major(const SpmmArgs& a) { return a.b_col == 1 && (a.b_row >= a.n || a.cols <= 1); }
int64_t whole_groups(const SpmmArgs& a) {  // the length of a row of b in whole 16-byte groups
  const int64_t n = 16 / bytes_of(a.type);
  return (a.n + n - 1) / n * n;
}
size_t rounded(size_t bytes) { return (bytes + 255) / 256 * 256; }
int blocks_for(int64_t wanted) { return static_cast<int>(std::clamp<int64_t>(wanted, 1, 1 << 30)); }

template <class T, class V, int N>
int scalar_launch(const SpmmArgs& a, const DeviceProps& props, cudaStream_t stream) {
  int lane_bits = 0;
  while (lane_bits < 5 && (int64_t{1} << lane_bits) * N < a.n) ++lane_bits;
  const int64_t sets = (a.rows + (32 >> lane_bits) - 1) >> (5 - lane_bits), chunks = (a.n + (N << lane_bits) - 1) / (N << lane_bits);
  const int64_t most = a.guard ? props.sms * kGuardedBlocksPerSm : int64_t{1} << 30;
  const unsigned grid = static_cast<unsigned>(std::clamp<int64_t>((sets + kThreads / 32 - 1) / (kThreads / 32), 1, most));
  const unsigned across = static_cast<unsigned>(std::min<int64_t>(chunks, a.guard ? 1 : 65535));
  const bool aligned = a.out_col == 1 && reinterpret_cast<uintptr_t>(a.out) % 16 == 0 && a.out_row * sizeof(T) % 16 == 0;
  SK_LAUNCH((&spmm_scalar_kernel<N, T, V>), dim3(grid, across), kThreads, 0, stream, a, lane_bits, aligned);
  return static_cast<int>(cudaGetLastError());
}

template <class T, class V>
int scalar_typed(const SpmmArgs& a, const DeviceProps& props, cudaStream_t stream) {
  const bool groups =
      a.b_col == 1 && !a.perm && reinterpret_cast<uintptr_t>(a.b) % 16 == 0 && a.b_row * sizeof(T) % 16 == 0 && a.b_row >= whole_groups(a);
  return groups ? scalar_launch<T, V, 16 / sizeof(T)>(a, props, stream) : scalar_launch<T, V, 1>(a, props, stream);
}

int scalar(const SpmmArgs& a, const DeviceProps& props, cudaStream_t stream) {
  switch (a.type) {
    case SpmmType::f32:
      return scalar_typed<float, float>(a, props, stream);
    case SpmmType::f64:
      return scalar_typed<double, double>(a, props, stream);
    case SpmmType::bf16:
      return a.val_type == SpmmType::f32 ? scalar_typed<__nv_bfloat16, float>(a, props, stream)
                                         : scalar_typed<__nv_bfloat16, __nv_bfloat16>(a, props, stream);
    case SpmmType::f16:
      return a.val_type == SpmmType::f32 ? scalar_typed<__half, float>(a, props, stream) : scalar_typed<__half, __half>(a, props, stream);
  }
  return static_cast<int>(cudaErrorInvalidValue);
}

}  // namespace

size_t spmm_values_bytes(const SpmmArgs& a) { return a.perm ? rounded(static_cast<size_t>(a.nnz) * (a.type == SpmmType::f64 ? 8 : 4)) : 0; }

int order_spmm_values(SpmmArgs& a, void* workspace, cudaStream_t stream) {
  if (a.perm == nullptr) return 0;
  const int grid = blocks_for((a.nnz + kThreads - 1) / kThreads);
  const int status = with_type(a.val_type, [&](auto zero) {
    using V = decltype(zero);
    SK_LAUNCH(&spmm_values_kernel<V>, grid, kThreads, 0, stream, a, static_cast<Sum<V>*>(workspace));
    return static_cast<int>(cudaGetLastError());
  });
  a.val = workspace;
  a.val_type = a.type == SpmmType::f64 ? SpmmType::f64 : SpmmType::f32;
  a.perm = nullptr;
  return status;
}

size_t spmm_scalar_workspace_bytes(const SpmmArgs& a) {
  if (a.guard) return 0;
  return spmm_values_bytes(a) + (row_major(a) ? 0 : static_cast<size_t>(a.cols) * whole_groups(a) * bytes_of(a.type));
}

int launch_spmm_scalar(const SpmmArgs& args, void* workspace, const DeviceProps& props, cudaStream_t stream) {
  if (args.rows == 0 || args.n == 0) return 0;
  SpmmArgs a = args;
  if (a.guard) return scalar(a, props, stream);  // will most likely do nothing: one launch, whatever the layout
  if (const int status = order_spmm_values(a, workspace, stream)) return status;
  if (!row_major(a) && a.cols > 0) {
    const int64_t width = whole_groups(a);
    void* to = static_cast<char*>(workspace) + spmm_values_bytes(args);
    const int64_t tiles = (width + kTile - 1) / kTile * ((a.cols + kTile - 1) / kTile);
    const int grid = blocks_for(tiles);
    const int status = with_type(a.type, [&](auto zero) {
      using T = decltype(zero);
      SK_LAUNCH(&spmm_transpose_kernel<T>, grid, kThreads, 0, stream, a, static_cast<T*>(to), width);
      return static_cast<int>(cudaGetLastError());
    });
    if (status) return status;
    a.b = to;
    a.b_row = width;
    a.b_col = 1;
  }
  return scalar(a, props, stream);
}

}  // namespace sparsekern::cuda
