// The arguments of activity, checked once; for the CPU and the CUDA bindings.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <array>
#include <optional>
#include <utility>
#include <vector>

#include "common/activity_types.h"

namespace sparsekern {

constexpr const char* kActivity = "activity";

// x as [images, length, features] without a copy: leading dimensions are merged where one stride serves both.
inline std::optional<ActivityView> view_of(const at::Tensor& x) {
  std::vector<std::pair<int64_t, int64_t>> lead;  // size, stride
  for (int64_t d = 0; d + 1 < x.dim(); ++d) {
    if (x.size(d) == 1) continue;
    if (!lead.empty() && lead.back().second == x.stride(d) * x.size(d)) lead.back() = {lead.back().first * x.size(d), x.stride(d)};
    else lead.emplace_back(x.size(d), x.stride(d));
  }
  if (lead.size() > 2) return std::nullopt;
  ActivityView v;
  v.features = x.size(-1), v.feature = x.stride(-1);
  v.images = lead.size() == 2 ? lead[0].first : 1, v.image = lead.size() == 2 ? lead[0].second : 0;
  v.length = lead.empty() ? 1 : lead.back().first, v.step = lead.empty() ? 0 : lead.back().second;
  if (v.features == 1) v.feature = 1;
  return v;
}

inline std::array<int64_t, 2> window_side(const char* name, at::IntArrayRef given, int64_t fallback, int64_t least) {
  if (given.empty()) return {fallback, fallback};
  TORCH_CHECK_VALUE(given.size() == 2 && given[0] >= least && given[1] >= least, kActivity, ": ", name, ": expected two numbers >= ", least, ", got ",
                    given);
  return {given[0], given[1]};
}

inline ActivityWindow window_of(const at::Tensor& x, at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                                at::IntArrayRef dilation) {
  TORCH_CHECK_VALUE(x.dim() == 4, kActivity, ": x: expected [N, C, H, W] with kernel_size, got shape ", x.sizes());
  ActivityWindow w;
  w.kernel = window_side("kernel_size", kernel_size, 1, 1);
  w.stride = window_side("stride", stride, 1, 1);
  w.padding = window_side("padding", padding, 0, 0);
  w.dilation = window_side("dilation", dilation, 1, 1);
  for (int i = 0; i < 2; ++i) {
    w.input[i] = x.size(2 + i);
    const int64_t room = w.input[i] + 2 * w.padding[i] - w.dilation[i] * (w.kernel[i] - 1) - 1;
    w.output[i] = room < 0 ? -((-room + w.stride[i] - 1) / w.stride[i]) + 1 : room / w.stride[i] + 1;
  }
  TORCH_CHECK_VALUE(w.output[0] >= 0 && w.output[1] >= 0, kActivity, ": kernel_size: expected a window that fits the padded input [", w.input[0],
                    ", ", w.input[1], "], got an output of [", w.output[0], ", ", w.output[1], "]");
  return w;
}

// All but the window.
inline void check_activity(const at::Tensor& x, bool is_signed, const std::optional<at::Tensor>& seed, int64_t offset, bool in_window) {
  using at::ScalarType;
  const ScalarType type = x.scalar_type();
  TORCH_CHECK_TYPE(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half || type == ScalarType::Double, kActivity,
                   ": x: expected float32, bfloat16, float16 or float64, got ", type);
  if (is_signed) {
    TORCH_CHECK_VALUE(seed.has_value(), kActivity, ": seed: expected an int64 tensor with signed=True, got None");
    TORCH_CHECK_TYPE(seed->scalar_type() == at::kLong, kActivity, ": seed: expected int64, got ", seed->scalar_type());
    TORCH_CHECK_VALUE(seed->numel() == 1, kActivity, ": seed: expected one number, got shape ", seed->sizes());
    TORCH_CHECK_VALUE(seed->device() == x.device(), kActivity, ": seed: expected a tensor on ", x.device(), ", got ", seed->device(),
                      "; move it with .to()");
  }
  TORCH_CHECK_VALUE(offset >= 0 && offset <= int64_t{1} << 62, kActivity, ": offset: expected a number from 0 to 2^62, got ", offset);
  TORCH_CHECK_VALUE(in_window || x.dim() > 0, kActivity, ": x: expected [..., features], got a scalar");
}

}  // namespace sparsekern
