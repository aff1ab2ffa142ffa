// What a CUDA binding needs of torch and the runtime: registration, the current stream, device properties, errors.
// With SPARSEKERN_SIMT the same bindings are built as host C++ over the emulator of csrc/simt: they take CPU tensors and
// stand in a namespace of their own, so that tests of the whole path, from the tensors on, run where there is no GPU.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <array>
#include <atomic>
#include <optional>

#include "common/check.h"
#include "cuda/launch.h"

#ifdef SPARSEKERN_SIMT

#define SK_CUDA_LIBRARY(m) TORCH_LIBRARY_IMPL(sparsekern_simt, CPU, m)
#define SK_CUDA_CHECK(op, status)                                              \
  do {                                                                         \
    const int sk_status = (status);                                            \
    TORCH_CHECK(sk_status == 0, op, ": the emulated launch gave ", sk_status); \
  } while (0)

namespace sparsekern::cuda {

inline bool torch_has_cuda() { return false; }
inline cudaStream_t current_stream(const char*, c10::Device) { return nullptr; }
inline DeviceProps device_props(const char*, c10::Device) { return {2}; }  // small, so that blocks walk several pieces
inline bool is_device(const at::Tensor& t) { return t.is_cpu(); }

}  // namespace sparsekern::cuda

#else

#include <cuda_runtime_api.h>

// Registers the bindings of a file: SK_CUDA_LIBRARY(m) { m.impl("op", &op_cuda); }
#define SK_CUDA_LIBRARY(m) TORCH_LIBRARY_IMPL(sparsekern, CUDA, m)

// torch's C interface to the current stream, in libtorch_cuda. Weak, so that the same library loads beside a CPU build
// of torch, where it stays null; linking torch's CUDA libraries would not.
extern "C" __attribute__((weak)) int32_t aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

// A failed launch, in the words of the other checks.
#define SK_CUDA_CHECK(op, status)                                                                                   \
  do {                                                                                                              \
    const int sk_status = (status);                                                                                 \
    TORCH_CHECK(sk_status == 0, op, ": CUDA: ", cudaGetErrorString(static_cast<cudaError_t>(sk_status)),            \
                "; an error from earlier work can surface here, CUDA_LAUNCH_BLOCKING=1 shows where it comes from"); \
  } while (0)

namespace sparsekern::cuda {

inline bool torch_has_cuda() { return aoti_torch_get_current_cuda_stream != nullptr; }

inline cudaStream_t current_stream(const char* op, c10::Device device) {
  TORCH_CHECK(torch_has_cuda(), op, ": this build of torch has no CUDA; install one that has, or keep the tensors on the CPU");
  void* stream = nullptr;
  const int32_t status = aoti_torch_get_current_cuda_stream(device.index(), &stream);
  TORCH_CHECK(status == 0, op, ": torch gave no CUDA stream for ", device);
  return static_cast<cudaStream_t>(stream);
}

// Asked once per device and attribute.
template <cudaDeviceAttr attribute>
inline int device_attribute(const char* op, c10::Device device) {
  static std::array<std::atomic<int>, 128> known{};
  const auto index = static_cast<size_t>(device.index());
  TORCH_CHECK(index < known.size(), op, ": ", device, ": expected one of the first ", known.size(), " devices");
  int value = known[index].load(std::memory_order_relaxed);
  if (value == 0) {
    SK_CUDA_CHECK(op, cudaDeviceGetAttribute(&value, attribute, device.index()));
    known[index].store(value, std::memory_order_relaxed);
  }
  return value;
}

inline DeviceProps device_props(const char* op, c10::Device device) {
  return {device_attribute<cudaDevAttrMultiProcessorCount>(op, device), device_attribute<cudaDevAttrMaxSharedMemoryPerBlockOptin>(op, device),
          device_attribute<cudaDevAttrL2CacheSize>(op, device)};
}

inline bool is_device(const at::Tensor& t) { return t.is_cuda(); }

}  // namespace sparsekern::cuda

#endif

namespace sparsekern::cuda {

// One operand by its name; of a list: "params[3]".
inline void check_cuda(const char* op, const char* name, const at::Tensor& t) {
  TORCH_CHECK_VALUE(is_device(t), op, ": ", name, ": expected a tensor on a CUDA device like the others, got ", t.device(), "; move it with .to()");
}
inline void check_cuda(const char* op, const char* name, size_t index, const at::Tensor& t) {
  TORCH_CHECK_VALUE(is_device(t), op, ": ", name, "[", index, "]: expected a tensor on a CUDA device like the others, got ", t.device(),
                    "; move it with .to()");
}

// A number that stays on the device: its address for the kernel, null when it was not given.
inline const float* device_scalar(const char* op, const char* name, const std::optional<at::Tensor>& t, c10::Device device) {
  if (!t || !t->defined()) return nullptr;
  TORCH_CHECK_TYPE(t->scalar_type() == at::kFloat, op, ": ", name, ": expected float32, got ", t->scalar_type());
  TORCH_CHECK_VALUE(t->numel() == 1, op, ": ", name, ": expected one number, got shape ", t->sizes());
  TORCH_CHECK_VALUE(t->device() == device, op, ": ", name, ": expected a tensor on ", device, ", got ", t->device(), "; move it with .to()");
  return t->const_data_ptr<float>();
}

inline DType dtype_of(const char* op, const char* name, at::ScalarType type) {
  if (type == at::kFloat) return DType::f32;
  if (type == at::kBFloat16) return DType::bf16;
  if (type == at::kHalf) return DType::f16;
  TORCH_CHECK_TYPE(false, op, ": ", name, ": expected float32, bfloat16 or float16 on a CUDA device, got ", type);
}

}  // namespace sparsekern::cuda
