// The launcher of csr_densify_kernel.
#include "cuda/csr_densify.cuh"

#include <algorithm>

namespace sparsekern::cuda {
namespace {

template <class T, class V>
int launch_typed(const SpmmArgs& a, void* dense, int64_t width, int32_t* flags, const DeviceProps& props, cudaStream_t stream) {
  const int checks = densify_checks(props);
  const int grid = checks + static_cast<int>(std::min<int64_t>(a.rows, props.sms * 8));
  SK_LAUNCH((&csr_densify_kernel<T, V>), grid, kThreads, 0, stream, a, static_cast<T*>(dense), width, flags, checks);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace

int launch_csr_densify(const SpmmArgs& a, void* dense, int64_t width, int32_t* flags, const DeviceProps& props, cudaStream_t stream) {
  const bool wide = a.val_type == SpmmType::f32;
  switch (a.type) {
    case SpmmType::f32:
      return launch_typed<float, float>(a, dense, width, flags, props, stream);
    case SpmmType::bf16:
      return wide ? launch_typed<__nv_bfloat16, float>(a, dense, width, flags, props, stream)
                  : launch_typed<__nv_bfloat16, __nv_bfloat16>(a, dense, width, flags, props, stream);
    case SpmmType::f16:
      return wide ? launch_typed<__half, float>(a, dense, width, flags, props, stream)
                  : launch_typed<__half, __half>(a, dense, width, flags, props, stream);
    case SpmmType::f64:
      break;
  }
  return static_cast<int>(cudaErrorInvalidValue);
}

}  // namespace sparsekern::cuda
