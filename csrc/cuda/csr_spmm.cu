// Launchers of csr_spmm and csr_spmm_t; the kernels are in csr_spmm.cuh.
#include "cuda/csr_spmm_launch.cuh"

namespace sparsekern::cuda {
namespace {

size_t rounded(size_t bytes) { return (bytes + 255) / 256 * 256; }
int blocks_for(int64_t wanted) { return static_cast<int>(std::clamp<int64_t>(wanted, 1, 1 << 30)); }

}  // namespace

size_t spmm_values_bytes(const SpmmArgs& a) { return a.perm ? rounded(static_cast<size_t>(a.nnz) * (a.type == SpmmType::f64 ? 8 : 4)) : 0; }

int order_spmm_values(SpmmArgs& a, void* workspace, cudaStream_t stream) {
  if (a.perm == nullptr) return 0;
  const int grid = blocks_for((a.nnz + kThreads - 1) / kThreads);
  const int status = with_types<true>(a.val_type, a.val_type, [&](auto zero, auto) {
    using V = decltype(zero);
    SK_LAUNCH(&spmm_values_kernel<V>, grid, kThreads, 0, stream, a, static_cast<Sum<V>*>(workspace));
    return static_cast<int>(cudaGetLastError());
  });
  a.val = workspace;
  a.val_type = a.type == SpmmType::f64 ? SpmmType::f64 : SpmmType::f32;
  a.perm = nullptr;
  return status;
}

size_t spmm_operand_bytes(const SpmmArgs& a) { return row_major(a) ? 0 : static_cast<size_t>(a.cols) * whole_groups(a) * bytes_of(a.type); }

int turn_spmm_operand(SpmmArgs& a, void* workspace, cudaStream_t stream) {
  if (row_major(a) || a.cols == 0) return 0;
  const int64_t width = whole_groups(a), tiles = (width + kTile - 1) / kTile * ((a.cols + kTile - 1) / kTile);
  const int grid = blocks_for(tiles);
  const int status = with_types<true>(a.type, a.type, [&](auto zero, auto) {
    using T = decltype(zero);
    SK_LAUNCH(&spmm_transpose_kernel<T>, grid, kThreads, 0, stream, a, static_cast<T*>(workspace), width);
    return static_cast<int>(cudaGetLastError());
  });
  a.b = workspace;
  a.b_row = width;
  a.b_col = 1;
  return status;
}

size_t spmm_scalar_workspace_bytes(const SpmmArgs& a) { return a.guard ? 0 : spmm_values_bytes(a) + spmm_operand_bytes(a); }

int launch_spmm_scalar(const SpmmArgs& args, void* workspace, const DeviceProps& props, cudaStream_t stream) {
  if (args.rows == 0 || args.n == 0) return 0;
  SpmmArgs a = args;
  if (a.guard) return scalar(a, props, stream);  // will most likely do nothing: one launch, whatever the layout
  if (const int status = order_spmm_values(a, workspace, stream)) return status;
  if (const int status = turn_spmm_operand(a, static_cast<char*>(workspace) + spmm_values_bytes(args), stream)) return status;
  return scalar(a, props, stream);
}

}  // namespace sparsekern::cuda
