// The launcher of csr_densify_kernel.
#include "cuda/csr_spmm_launch.cuh"

namespace sparsekern::cuda {

int launch_csr_densify(const SpmmArgs& a, void* dense, int64_t width, int32_t* flags, const DeviceProps& props, cudaStream_t stream) {
  return densify(a, dense, width, flags, props, stream);
}

}  // namespace sparsekern::cuda
