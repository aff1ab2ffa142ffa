// Checks and registration of nm_pack on CUDA. Nothing here waits for the device, so a group with too many non-zeros is no error.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <tuple>

#include "common/nm_check.h"
#include "cuda/nm_pack.h"
#include "cuda/stream.h"

namespace sparsekern {
namespace {

std::tuple<at::Tensor, at::Tensor> nm_pack_cuda(const at::Tensor& x, int64_t n, int64_t m, int64_t v) {
  constexpr const char* op = "nm_pack";
  cuda::check_cuda(op, "x", x);
  check_nm_pack(x, n, m, v);
  const cuda::DType type = cuda::dtype_of(op, "x", x.scalar_type());
  const c10::DeviceGuard guard(x.device());
  const int64_t rows = x.size(0), groups = x.size(1) / m;
  at::Tensor values = at::empty({rows, groups * n}, x.options()), index = at::empty({rows / v, groups * n}, x.options().dtype(at::kByte));
  if (values.numel() == 0) return {values, index};
  const at::Tensor dense = x.contiguous();
  const cuda::NmPackArgs args = {
      dense.const_data_ptr(), values.mutable_data_ptr(), static_cast<uint8_t*>(index.mutable_data_ptr()), rows / v, groups, v,
      static_cast<int>(n),    static_cast<int>(m)};
  SK_CUDA_CHECK(op, cuda::launch_nm_pack(args, type, cuda::device_props(op, x.device()), cuda::current_stream(op, x.device())));
  return {values, index};
}

}  // namespace

SK_CUDA_LIBRARY(m) { m.impl("nm_pack", &nm_pack_cuda); }

}  // namespace sparsekern
