// What masked_weight asks of the GPU: a launcher over raw pointers, free of torch.
#pragma once
#include "common/mask_view.h"
#include "cuda/launch.h"

namespace sparsekern::cuda {

struct WeightEntry {
  const void* from;
  void* to;
  const void* mask;  // null when kind is none
  int64_t numel;     // > 0
  int32_t first;     // filled in by the launcher
  MaskKind kind;
};

// All entries have these dtypes. Returns a cudaError_t. Needs no workspace.
int launch_masked_weight(WeightEntry* entries, size_t count, DType from, DType to, const DeviceProps& props, cudaStream_t stream);

}  // namespace sparsekern::cuda
