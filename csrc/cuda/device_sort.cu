// The device-wide sort is CUB's radix sort; without nvcc a plain stable sort stands in, so that whole ops run under csrc/simt.
#include "cuda/device_sort.h"

#ifdef __CUDACC__
#include <cub/device/device_radix_sort.cuh>

namespace sparsekern::cuda {

// All 64 bits are sized for: a narrower range needs no more.
size_t sort_workspace_bytes(int64_t count) {
  size_t bytes = 0;
  cub::DeviceRadixSort::SortPairs(nullptr, bytes, static_cast<const uint64_t*>(nullptr), static_cast<uint64_t*>(nullptr),
                                  static_cast<const uint32_t*>(nullptr), static_cast<uint32_t*>(nullptr), static_cast<int>(count));
  return bytes;
}

int launch_sort(const uint64_t* keys, uint64_t* sorted_keys, const uint32_t* values, uint32_t* sorted_values, int64_t count, int low, int high,
                void* workspace, size_t workspace_bytes, cudaStream_t stream) {
  if (count == 0) return 0;
  return static_cast<int>(cub::DeviceRadixSort::SortPairs(workspace, workspace_bytes, keys, sorted_keys, values, sorted_values,
                                                          static_cast<int>(count), low, high, stream));
}

}  // namespace sparsekern::cuda
#else
#include <algorithm>
#include <numeric>
#include <vector>

namespace sparsekern::cuda {

size_t sort_workspace_bytes(int64_t) { return 0; }

int launch_sort(const uint64_t* keys, uint64_t* sorted_keys, const uint32_t* values, uint32_t* sorted_values, int64_t count, int low, int high, void*,
                size_t, cudaStream_t) {
  const uint64_t mask = high - low == 64 ? ~uint64_t(0) : ((uint64_t(1) << (high - low)) - 1) << low;
  std::vector<int64_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return (keys[a] & mask) < (keys[b] & mask); });
  for (int64_t i = 0; i < count; ++i) {
    sorted_keys[i] = keys[order[i]];
    sorted_values[i] = values[order[i]];
  }
  return 0;
}

}  // namespace sparsekern::cuda
#endif
