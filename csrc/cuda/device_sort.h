// A stable sort of 64-bit keys with 32-bit values, for the whole device.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cuda/launch.h"

namespace sparsekern::cuda {

size_t sort_workspace_bytes(int64_t count);

// By the bits [low, high) of the keys, smallest first; fewer than 2^31 pairs, and the results elsewhere than the sources.
// Returns a cudaError_t.
int launch_sort(const uint64_t* keys, uint64_t* sorted_keys, const uint32_t* values, uint32_t* sorted_values, int64_t count, int low, int high,
                void* workspace, size_t workspace_bytes, cudaStream_t stream);

}  // namespace sparsekern::cuda
