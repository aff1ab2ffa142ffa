// Running sums of counts, for the whole device.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cuda/launch.h"

namespace sparsekern::cuda {

using Count = unsigned long long;  // what 64-bit atomics take

size_t scan_workspace_bytes(int64_t count);

// out[i] = in[0] + ... + in[i]; in place if they are the same. Returns a cudaError_t.
int launch_scan(const Count* in, Count* out, int64_t count, void* workspace, cudaStream_t stream);

}  // namespace sparsekern::cuda
