// Launchers of nm_spmm over the kernels that it shares with csr_spmm.
#include "cuda/nm_spmm.cuh"

#include "cuda/csr_spmm_launch.cuh"

namespace sparsekern::cuda {

size_t nm_scalar_workspace_bytes(const NmArgs& a) { return spmm_scalar_workspace_bytes(a); }

int launch_nm_scalar(const NmArgs& args, void* workspace, const DeviceProps& props, cudaStream_t stream) {
  if (args.rows == 0 || args.n == 0) return 0;
  NmArgs a = args;
  if (!a.guard)
    if (const int status = turn_spmm_operand(a, workspace, stream)) return status;
  return scalar(a, props, stream);
}

int launch_nm_densify(const NmArgs& a, void* dense, int64_t width, int32_t* flags, const DeviceProps& props, cudaStream_t stream) {
  return densify(a, dense, width, flags, props, stream);
}

}  // namespace sparsekern::cuda
