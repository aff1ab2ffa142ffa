// What nm_pack asks of the GPU: a launcher over raw pointers, free of torch.
#pragma once
#include "cuda/launch.h"

namespace sparsekern::cuda {

// [bands * v, groups * m] row-major to values [bands * v, groups * n] and index [bands, groups * n]; all sizes > 0.
struct NmPackArgs {
  const void* x;
  void* values;
  uint8_t* index;
  int64_t bands, groups, v;
  int n, m;
};

// Returns a cudaError_t; needs no workspace.
int launch_nm_pack(const NmPackArgs& args, DType type, const DeviceProps& props, cudaStream_t stream);

}  // namespace sparsekern::cuda
