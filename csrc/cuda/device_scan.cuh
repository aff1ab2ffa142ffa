// out[i] = in[0] + ... + in[i] of 64-bit counts. Up to 4,096 counts one block does it all; above, chunks of 4,096 are summed, one block
// scans the sums, and every block scans its chunk from there: 24 B a count, read twice and written once, 32 B a thread at a time.
// Counts here are few (rows, tiles of a mask, items to draw from), so what matters is one launch in the usual case.
// State: compiled for sm_80 and sm_90a and run under the emulator of csrc/simt; not yet run on a GPU, no time measured.
//
// budget: scan_sums_kernel 40
// budget: scan_kernel 48
// promise: scan_sums_kernel LDG.E.128 no-fp64
// promise: scan_kernel LDG.E.128 STG.E.128 no-fp64
#pragma once
#include "cuda/collective.cuh"
#include "cuda/device_scan.h"
#include "cuda/vector_io.cuh"

namespace sparsekern::cuda {

constexpr int kScanEach = 4, kScanTile = kThreads * kScanEach, kScanChunk = 4 * kScanTile;

// Counts at, at + 1, ... of those before `end`; 0 behind it.
__device__ __forceinline__ Group<Count, kScanEach> load_counts(const Count* in, int64_t at, int64_t end, bool aligned) {
  if (at + kScanEach <= end) return load_group<Count, kScanEach>(in + at, aligned);
  Group<Count, kScanEach> group;
#pragma unroll
  for (int k = 0; k < kScanEach; ++k) group.at[k] = at + k < end ? in[at + k] : 0;
  return group;
}

__global__ void __launch_bounds__(kThreads) scan_sums_kernel(const Count* in, int64_t count, Count* sums) {
  __shared__ Count warps[kThreads / 32];
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kScanChunk, end = begin + kScanChunk < count ? begin + kScanChunk : count;
  const bool aligned = is_aligned(in, 16);
  Count sum = 0;
#pragma unroll
  for (int turn = 0; turn < kScanChunk / kScanTile; ++turn) {
    const Group<Count, kScanEach> group = load_counts(in, begin + turn * kScanTile + static_cast<int>(threadIdx.x) * kScanEach, end, aligned);
#pragma unroll
    for (int k = 0; k < kScanEach; ++k) sum += group.at[k];
  }
  const Count total = block_sum<kThreads>(sum, warps);
  if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

// Block b scans counts [b, b + 1) * chunk, behind a sum of before[b - 1] if `before` is given.
__global__ void __launch_bounds__(kThreads) scan_kernel(const Count* in, Count* out, int64_t count, int64_t chunk, const Count* before) {
  __shared__ Count warps[kThreads / 32];
  const int64_t begin = blockIdx.x * chunk, end = begin + chunk < count ? begin + chunk : count;
  const bool in_aligned = is_aligned(in, 16), out_aligned = is_aligned(out, 16);
  Count carry = before != nullptr && blockIdx.x > 0 ? before[blockIdx.x - 1] : 0;
  for (int64_t tile = begin; tile < end; tile += kScanTile) {
    const int64_t at = tile + static_cast<int>(threadIdx.x) * kScanEach;
    Group<Count, kScanEach> group = load_counts(in, at, end, in_aligned);
#pragma unroll
    for (int k = 1; k < kScanEach; ++k) group.at[k] += group.at[k - 1];
    Count total;
    const Count first = carry + block_exclusive_sum<kThreads>(group.at[kScanEach - 1], warps, total);
    carry += total;
#pragma unroll
    for (int k = 0; k < kScanEach; ++k) group.at[k] += first;
    if (at + kScanEach <= end) {
      store_group(out + at, Group<Count, 2>{{group.at[0], group.at[1]}}, out_aligned);
      store_group(out + at + 2, Group<Count, 2>{{group.at[2], group.at[3]}}, out_aligned);
    } else {
#pragma unroll
      for (int k = 0; k < kScanEach; ++k)
        if (at + k < end) out[at + k] = group.at[k];
    }
  }
}

}  // namespace sparsekern::cuda
