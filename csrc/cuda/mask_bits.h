// What pack_mask, unpack_mask and mask_stats ask of the GPU: launchers over raw pointers, free of torch.
#pragma once
#include "cuda/launch.h"

namespace sparsekern::cuda {

struct StatsEntry {
  const void *a, *b;  // b is null without a second list
  int64_t* row;       // four counts, zeroed by the caller; the kernel adds
  int64_t count;      // of bytes, or of words when packed; > 0
  bool packed;
  int32_t first;  // this and the next: filled in by the launcher
  int64_t numel;  // of words, or of four bytes
};

// `mask` has `numel` bytes, `bits` ceil(numel / 32) words; numel > 0. Returns a cudaError_t; needs no workspace.
int launch_pack_mask(const uint8_t* mask, uint32_t* bits, int64_t numel, const DeviceProps& props, cudaStream_t stream);
int launch_unpack_mask(const uint32_t* bits, uint8_t* mask, int64_t numel, const DeviceProps& props, cudaStream_t stream);
int launch_mask_stats(StatsEntry* entries, size_t count, const DeviceProps& props, cudaStream_t stream);

}  // namespace sparsekern::cuda
