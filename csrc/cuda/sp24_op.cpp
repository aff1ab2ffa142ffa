// Checks and registration of sp24_compress and sp24_decompress on CUDA. Nothing here waits for the device.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>
#include <tuple>

#include "common/sp24_check.h"
#include "cuda/sp24.h"
#include "cuda/stream.h"

namespace sparsekern {
namespace {

void check_half(const char* op, const char* name, at::ScalarType type) {
  TORCH_CHECK_TYPE(type == at::kBFloat16 || type == at::kHalf, op, ": ", name, ": expected bfloat16 or float16 on a CUDA device, got ", type);
}

uint16_t* halves(at::Tensor& t) { return static_cast<uint16_t*>(t.mutable_data_ptr()); }

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> sp24_compress_cuda(const at::Tensor& x, const std::optional<at::Tensor>& given, bool both,
                                                                              c10::string_view layout) {
  constexpr const char* op = "sp24_compress";
  cuda::check_cuda(op, "x", x);
  const bool sm80 = check_sp24_compress(x, both, layout);
  check_half(op, "x", x.scalar_type());
  const c10::DeviceGuard guard(x.device());
  at::Tensor keep;
  const MaskView mask = sp24_mask(given, x, keep);
  const at::Tensor dense = x.contiguous();
  const int64_t rows = x.size(0), cols = x.size(1), across = both ? rows : 0, down = both ? cols : 0;
  const auto words = x.options().dtype(at::kShort);
  at::Tensor v = at::empty({rows, cols / 2}, x.options()), e = at::empty({rows, cols / 16}, words);
  at::Tensor vt = at::empty({down, across / 2}, x.options()), et = at::empty({down, across / 16}, words);
  if (x.numel() != 0) {
    const uint16_t infinity = x.scalar_type() == at::kHalf ? Float16Bits::kInfinity : BFloat16Bits::kInfinity;
    const cuda::Sp24Pack args = {static_cast<const uint16_t*>(dense.const_data_ptr()),
                                 mask,
                                 infinity,
                                 sm80,
                                 rows,
                                 cols,
                                 halves(v),
                                 halves(e),
                                 both ? halves(vt) : nullptr,
                                 both ? halves(et) : nullptr};
    SK_CUDA_CHECK(op, cuda::launch_sp24_compress(args, cuda::device_props(op, x.device()), cuda::current_stream(op, x.device())));
  }
  return {v, e, vt, et};
}

at::Tensor sp24_decompress_cuda(const at::Tensor& v, const at::Tensor& e, at::IntArrayRef shape, c10::string_view layout) {
  constexpr const char* op = "sp24_decompress";
  cuda::check_cuda(op, "v", v);
  const bool sm80 = check_sp24_decompress(v, e, shape, layout);
  check_half(op, "v", v.scalar_type());
  const c10::DeviceGuard guard(v.device());
  at::Tensor x = at::empty(shape, v.options());
  if (x.numel() == 0) return x;
  const at::Tensor values = v.contiguous(), words = e.contiguous();
  const cuda::Sp24Unpack args = {static_cast<const uint16_t*>(values.const_data_ptr()),
                                 static_cast<const uint16_t*>(words.const_data_ptr()),
                                 sm80,
                                 shape[0],
                                 shape[1],
                                 halves(x)};
  SK_CUDA_CHECK(op, cuda::launch_sp24_decompress(args, cuda::device_props(op, v.device()), cuda::current_stream(op, v.device())));
  return x;
}

}  // namespace

SK_CUDA_LIBRARY(m) {
  m.impl("sp24_compress", &sp24_compress_cuda);
  m.impl("sp24_decompress", &sp24_decompress_cuda);
}

}  // namespace sparsekern
