// What is_clean asks of the GPU: a launcher over raw pointers, free of torch.
#pragma once
#include "common/mask_view.h"
#include "cuda/launch.h"

namespace sparsekern::cuda {

struct CleanEntry {
  const void *data, *mask;  // the mask is null when kind is none
  int64_t numel;            // > 0
  int32_t first;            // filled in by the launcher
  MaskKind kind;
};

// All entries have elements of `bytes` bytes: 4, or 2 for both half types. `clean` holds 1 before and 0 after where a
// hidden element is not zero. Returns a cudaError_t; needs no workspace.
int launch_is_clean(CleanEntry* entries, size_t count, int bytes, bool* clean, const DeviceProps& props, cudaStream_t stream);

}  // namespace sparsekern::cuda
