// Checks and registration of nm_mask, nm_apply_ and nm_mask_transposable on CUDA. Nothing here waits for the device.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "common/nm_check.h"
#include "cuda/nm_mask.h"
#include "cuda/stream.h"

namespace sparsekern {
namespace {

// A dense tensor is [outer, length, inner] in memory order, whatever the order of its dimensions.
cuda::NmShape shape_of(const at::Tensor& x, int64_t n, int64_t m, int64_t dim) {
  const int64_t length = x.dim() == 0 ? 1 : x.size(dim), inner = length == 1 ? 1 : x.stride(dim);
  return cuda::nm_shape(x.numel() / (length * inner), length, inner, static_cast<int>(n), static_cast<int>(m));
}

at::Tensor nm_mask_cuda(const at::Tensor& x, int64_t n, int64_t m, int64_t dim, bool use_abs, bool packed) {
  constexpr const char* op = "nm_mask";
  cuda::check_cuda(op, "x", x);
  const int64_t along = check_nm(op, x, n, m, dim);
  const cuda::DType type = cuda::dtype_of(op, "x", x.scalar_type());
  const c10::DeviceGuard guard(x.device());
  const at::Tensor like = packed ? x.contiguous() : x;
  at::Tensor mask = packed ? at::empty({packed_words(x.numel())}, x.options().dtype(at::kInt)) : at::empty_like(x, x.options().dtype(at::kBool));
  at::Tensor values = like;
  if (!packed && !same_layout(x, mask)) values = x.new_empty_strided(mask.sizes(), mask.strides()).copy_(x);
  if (x.numel() == 0) return mask;
  const cuda::NmShape shape = shape_of(values, n, m, along);
  const auto bytes = static_cast<int64_t>(cuda::nm_mask_workspace_bytes(shape, packed));
  const at::Tensor workspace = at::empty({bytes}, x.options().dtype(at::kByte));
  SK_CUDA_CHECK(op, cuda::launch_nm_mask(shape, type, values.const_data_ptr(), use_abs, mask.mutable_data_ptr(), packed, workspace.mutable_data_ptr(),
                                         cuda::device_props(op, x.device()), cuda::current_stream(op, x.device())));
  return mask;
}

void nm_apply_cuda(const at::Tensor& x, int64_t n, int64_t m, int64_t dim) {
  constexpr const char* op = "nm_apply_";
  cuda::check_cuda(op, "x", x);
  const int64_t along = check_nm(op, x, n, m, dim);
  check_nm_dense(op, x);
  const cuda::DType type = cuda::dtype_of(op, "x", x.scalar_type());
  const c10::DeviceGuard guard(x.device());
  if (x.numel() != 0)
    SK_CUDA_CHECK(op, cuda::launch_nm_apply(shape_of(x, n, m, along), type, x.mutable_data_ptr(), cuda::device_props(op, x.device()),
                                            cuda::current_stream(op, x.device())));
}

at::Tensor nm_mask_transposable_cuda(const at::Tensor& x, int64_t n, int64_t m) {
  constexpr const char* op = "nm_mask_transposable";
  cuda::check_cuda(op, "x", x);
  check_transposable(x, n, m);
  const cuda::DType type = cuda::dtype_of(op, "x", x.scalar_type());
  const c10::DeviceGuard guard(x.device());
  const at::Tensor values = x.contiguous();
  at::Tensor mask = at::empty(x.sizes(), x.options().dtype(at::kBool));
  if (x.numel() != 0)
    SK_CUDA_CHECK(
        op, cuda::launch_nm_mask_transposable(values.const_data_ptr(), static_cast<uint8_t*>(mask.mutable_data_ptr()), x.size(0) / 4, x.size(1) / 4,
                                              type, cuda::device_props(op, x.device()), cuda::current_stream(op, x.device())));
  return mask;
}

}  // namespace

SK_CUDA_LIBRARY(m) {
  m.impl("nm_mask", &nm_mask_cuda);
  m.impl("nm_apply_", &nm_apply_cuda);
  m.impl("nm_mask_transposable", &nm_mask_transposable_cuda);
}

}  // namespace sparsekern
