// Checks, layouts and registration of activity on CUDA. Nothing here waits for the device.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <limits>
#include <optional>

#include "common/activity_args.h"
#include "cuda/activity.h"
#include "cuda/stream.h"

namespace sparsekern {
namespace {

int narrow(const char* what, int64_t size) {
  TORCH_CHECK_VALUE(size <= std::numeric_limits<int>::max(), kActivity, ": x: expected fewer than 2^31 ", what, ", got ", size);
  return static_cast<int>(size);
}

cuda::ActivityArgs flat_args(const ActivityView& v) {
  constexpr int64_t most = 1 << 30;
  cuda::ActivityArgs a = {};
  a.positions = v.images * v.length;
  a.image = v.image, a.step = v.step, a.feature = v.feature;
  a.features = narrow("features", v.features);
  a.taps = a.kernel_w = a.out_h = a.height = 1;
  // A line past 32 bits goes as images of a part of it each.
  if (v.length > most) a.image = v.step * most;
  a.out_w = a.width = static_cast<int>(std::min(v.length, most));
  return a;
}

cuda::ActivityArgs window_args(const at::Tensor& x, const ActivityWindow& w) {
  cuda::ActivityArgs a = {};
  a.window = true;
  a.positions = x.size(0) * w.output[0] * w.output[1];
  a.image = x.stride(0), a.feature = x.stride(1), a.row = x.stride(2), a.step = x.stride(3);
  a.features = narrow("channels", x.size(1));
  a.taps = narrow("taps", w.kernel[0] * w.kernel[1]), a.kernel_w = static_cast<int>(w.kernel[1]);
  a.out_h = narrow("rows", w.output[0]), a.out_w = narrow("columns", w.output[1]);
  a.height = narrow("rows", w.input[0]), a.width = narrow("columns", w.input[1]);
  a.stride_h = static_cast<int>(w.stride[0]), a.stride_w = static_cast<int>(w.stride[1]);
  a.padding_h = static_cast<int>(w.padding[0]), a.padding_w = static_cast<int>(w.padding[1]);
  a.dilation_h = static_cast<int>(w.dilation[0]), a.dilation_w = static_cast<int>(w.dilation[1]);
  return a;
}

// Whether every output reads just its own place: then the window says nothing.
bool is_pointwise(const ActivityWindow& w) {
  return w.kernel == std::array<int64_t, 2>{1, 1} && w.stride == w.kernel && w.padding == std::array<int64_t, 2>{0, 0};
}

at::Tensor activity_cuda(const at::Tensor& given, bool is_signed, const std::optional<at::Tensor>& seed, int64_t offset, at::IntArrayRef kernel_size,
                         at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
  cuda::check_cuda(kActivity, "x", given);
  at::Tensor x = given;
  bool in_window = !kernel_size.empty();
  check_activity(x, is_signed, seed, offset, in_window);
  const cuda::DType type = cuda::dtype_of(kActivity, "x", x.scalar_type());
  const c10::DeviceGuard guard(x.device());
  ActivityWindow w;
  if (in_window) w = window_of(x, kernel_size, stride, padding, dilation);
  const int64_t features = in_window ? x.size(1) * w.kernel[0] * w.kernel[1] : x.size(-1);
  const int64_t positions = in_window ? x.size(0) * w.output[0] * w.output[1] : 1;
  const at::TensorOptions options = x.options().dtype(at::kFloat);
  if (x.numel() == 0 || positions == 0) return at::zeros({features}, options);
  if (in_window && is_pointwise(w)) {
    x = x.permute({0, 2, 3, 1});
    in_window = false;
  }
  cuda::ActivityArgs args;
  if (in_window) {
    args = window_args(x, w);
  } else {
    std::optional<ActivityView> v = view_of(x);
    if (!v || (v->images > 1 && v->length > 1 << 30)) {
      x = x.contiguous();
      v = view_of(x);
    }
    args = flat_args(*v);
  }
  args.x = x.const_data_ptr();
  args.seed = is_signed ? seed->const_data_ptr<int64_t>() : nullptr;
  args.offset = offset;
  at::Tensor out = at::empty({features}, options);
  at::Tensor workspace = at::empty({static_cast<int64_t>(cuda::activity_workspace_bytes(args, type))}, options.dtype(at::kByte));
  SK_CUDA_CHECK(kActivity, cuda::launch_activity(args, type, out.mutable_data_ptr<float>(), workspace.mutable_data_ptr(),
                                                 cuda::current_stream(kActivity, x.device())));
  return out;
}

}  // namespace

SK_CUDA_LIBRARY(m) { m.impl("activity", &activity_cuda); }

}  // namespace sparsekern
