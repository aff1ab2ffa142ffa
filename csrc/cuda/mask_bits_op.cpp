// Checks and registration of pack_mask, unpack_mask and mask_stats on CUDA. Nothing here waits for the device.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <optional>
#include <vector>

#include "common/mask_lists.h"
#include "cuda/mask_bits.h"
#include "cuda/stream.h"

namespace sparsekern {
namespace {

at::Tensor pack_mask_cuda(const at::Tensor& mask) {
  constexpr const char* op = "pack_mask";
  cuda::check_cuda(op, "mask", mask);
  check_pack(mask);
  const c10::DeviceGuard guard(mask.device());
  const at::Tensor flat = mask.contiguous();
  at::Tensor bits = at::empty({packed_words(mask.numel())}, mask.options().dtype(at::kInt));
  if (mask.numel() != 0)
    SK_CUDA_CHECK(op, cuda::launch_pack_mask(static_cast<const uint8_t*>(flat.const_data_ptr()), static_cast<uint32_t*>(bits.mutable_data_ptr()),
                                             mask.numel(), cuda::device_props(op, mask.device()), cuda::current_stream(op, mask.device())));
  return bits;
}

// Bits past the last element are not looked at: that would wait for the device.
at::Tensor unpack_mask_cuda(const at::Tensor& bits, at::IntArrayRef shape) {
  constexpr const char* op = "unpack_mask";
  cuda::check_cuda(op, "bits", bits);
  const int64_t numel = check_unpack(bits, shape);
  const c10::DeviceGuard guard(bits.device());
  const at::Tensor words = bits.contiguous();
  at::Tensor mask = at::empty(shape, bits.options().dtype(at::kBool));
  if (numel != 0)
    SK_CUDA_CHECK(op, cuda::launch_unpack_mask(static_cast<const uint32_t*>(words.const_data_ptr()), static_cast<uint8_t*>(mask.mutable_data_ptr()),
                                               numel, cuda::device_props(op, bits.device()), cuda::current_stream(op, bits.device())));
  return mask;
}

at::Tensor mask_stats_cuda(at::TensorList a, std::optional<at::TensorList> second) {
  constexpr const char* op = "mask_stats";
  for (size_t i = 0; i < a.size(); ++i) {
    cuda::check_cuda(op, "a", i, a[i]);
    TORCH_CHECK_VALUE(a[i].device() == a[0].device(), op, ": a[", i, "]: expected a mask on ", a[0].device(), " like a[0], got ", a[i].device(),
                      "; move it with .to()");
  }
  const StatsLists lists(a, second);
  const c10::Device device = a.empty() ? c10::Device(c10::kCPU) : a[0].device();
  const c10::DeviceGuard guard(device);
  at::Tensor stats = at::zeros({static_cast<int64_t>(a.size()), 4}, at::TensorOptions().dtype(at::kLong).device(device));
  std::vector<cuda::StatsEntry> entries;
  for (size_t i = 0; i < lists.size(); ++i)
    if (const StatsView& x = lists[i]; x.numel != 0)
      entries.push_back({x.a, x.b, stats.mutable_data_ptr<int64_t>() + 4 * i, x.numel, x.packed, 0, 0});
  if (!entries.empty())
    SK_CUDA_CHECK(op, cuda::launch_mask_stats(entries.data(), entries.size(), cuda::device_props(op, device), cuda::current_stream(op, device)));
  return stats;
}

}  // namespace

SK_CUDA_LIBRARY(m) {
  m.impl("pack_mask", &pack_mask_cuda);
  m.impl("unpack_mask", &unpack_mask_cuda);
  m.impl("mask_stats", &mask_stats_cuda);
}

}  // namespace sparsekern
