// What masked_sgd_ and packed_sgd_ ask of the GPU: launchers over raw pointers, free of torch.
#pragma once
#include "common/sgd_scalars.h"
#include "cuda/launch.h"

namespace sparsekern::cuda {

// What `where` points to. none: nothing, all elements are updated.
enum class SgdKind : int32_t { none, bools, bits, gather32, gather64 };

struct SgdEntry {
  void* param;
  const void* grad;
  void* momentum;     // null when momentum is 0
  const void* where;  // the mask; or the positions of packed values in a dense gradient
  int64_t numel;      // > 0
  int32_t first;      // filled in by the launcher
  SgdKind kind;
};

struct SgdOptions {
  SgdScalars<float> scalars;
  bool assume_clean;
  // [1] on the device, or null: replaces scalars.lr; divides the gradients; 1 means that nothing happens.
  const float *lr, *grad_scale, *found_inf;
};

// All entries have these dtypes. Kinds none, bools and bits go to the first, none, gather32 and gather64 to the second.
// Returns a cudaError_t. Needs no workspace.
int launch_masked_sgd(SgdEntry* entries, size_t count, DType param, DType grad, const SgdOptions& options, const DeviceProps& props,
                      cudaStream_t stream);
int launch_packed_sgd(SgdEntry* entries, size_t count, DType param, DType grad, const SgdOptions& options, const DeviceProps& props,
                      cudaStream_t stream);

}  // namespace sparsekern::cuda
