// The launcher of the staged product; the kernel is in csr_spmm_staged.cuh.
#include "cuda/csr_spmm_staged.cuh"

namespace sparsekern::cuda {
namespace {

template <class T, class V, int R>
int launch_rows(const SpmmArgs& a, const StagedCall& call, const DeviceProps& props, cudaStream_t stream) {
  const auto kernel = &spmm_staged_kernel<T, V, R>;
  const int shared = static_cast<int>(call.plan.shared_bytes);
  // Always the same bound: one that followed the shape could shrink under another host thread that is about to launch.
  if (const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, props.shared_bytes))
    return static_cast<int>(status);
  SK_LAUNCH(kernel, static_cast<unsigned>(call.plan.panels * call.plan.row_blocks), call.plan.threads, shared, stream, a, call);
  return static_cast<int>(cudaGetLastError());
}

template <class T, class V>
int launch_typed(const SpmmArgs& a, const StagedCall& call, const DeviceProps& props, cudaStream_t stream) {
  return call.plan.rows_per_group == 1 ? launch_rows<T, V, 1>(a, call, props, stream) : launch_rows<T, V, 2>(a, call, props, stream);
}

}  // namespace

int launch_spmm_staged(const SpmmArgs& args, void* workspace, const DeviceProps& props, cudaStream_t stream) {
  if (args.rows == 0 || args.n == 0) return 0;
  SpmmArgs a = args;
  if (const int status = order_spmm_values(a, workspace, stream)) return status;
  const int size = bytes_of(a.type);
  StagedCall call = {plan_staged(a.rows, a.cols, a.n, size, props), false, false};
  if (!staged_fits(call.plan, a.rows, a.n, a.nnz)) return static_cast<int>(cudaErrorInvalidValue);
  const int64_t stride = a.b_col == 1 ? a.b_row : a.b_col;
  call.load_aligned = reinterpret_cast<uintptr_t>(a.b) % 16 == 0 && stride * size % 16 == 0;
  call.store_aligned = a.out_col == 1 && reinterpret_cast<uintptr_t>(a.out) % 16 == 0 && a.out_row * size % 16 == 0;
  switch (a.type) {
    case SpmmType::f32:
      return launch_typed<float, float>(a, call, props, stream);
    case SpmmType::bf16:
      return a.val_type == SpmmType::f32 ? launch_typed<__nv_bfloat16, float>(a, call, props, stream)
                                         : launch_typed<__nv_bfloat16, __nv_bfloat16>(a, call, props, stream);
    case SpmmType::f16:
      return a.val_type == SpmmType::f32 ? launch_typed<__half, float>(a, call, props, stream) : launch_typed<__half, __half>(a, call, props, stream);
    case SpmmType::f64:
      break;
  }
  return static_cast<int>(cudaErrorInvalidValue);
}

}  // namespace sparsekern::cuda
