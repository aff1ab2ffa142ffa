// Rows by falling length and the transposed pattern, by stable radix sorts (device_sort.h): of the rows by how much shorter than nnz they
// are, and of the nonzeros by column, the row riding along in the low half of the key, so that it need not be looked up again.
// Bytes: 16 written and 24 a sorting pass a nonzero (two passes up to 2^16 columns), 8 read, 4 written: some 80 a nonzero, 31 us at 1.7M.
// State: compiled for sm_80 and sm_90a and run under the emulator of csrc/simt, there without CUB; not yet run on a GPU, no time measured.
//
// budget: plan_row_keys_kernel 32
// budget: plan_entry_keys_kernel 40
// budget: plan_transpose_kernel 32
// budget: DeviceRadixSort 128
// budget: EmptyKernel 16
// promise: plan_row_keys_kernel no-fp64
// promise: plan_entry_keys_kernel no-fp64
// promise: plan_transpose_kernel no-fp64
#pragma once
#include "cuda/csr_device.cuh"
#include "cuda/csr_plan.h"

namespace sparsekern::cuda {

constexpr int kPlanEntries = 4 * kThreads;  // nonzeros a block does at a time

__global__ void __launch_bounds__(kThreads) plan_row_keys_kernel(const CsrView pattern, uint64_t* keys, uint32_t* numbers) {
  for (int64_t r = grid_thread(); r < pattern.rows; r += grid_threads()) {
    keys[r] = static_cast<uint64_t>(pattern.nnz - (crow_at(pattern, r + 1) - crow_at(pattern, r)));
    numbers[r] = static_cast<uint32_t>(r);
  }
}

// The rows of a block's nonzeros are searched for among those between its first and its last one only.
__global__ void __launch_bounds__(kThreads) plan_entry_keys_kernel(const CsrView pattern, uint64_t* keys, uint32_t* numbers) {
  __shared__ int64_t span[2];
  for (int64_t begin = static_cast<int64_t>(blockIdx.x) * kPlanEntries; begin < pattern.nnz;
       begin += static_cast<int64_t>(gridDim.x) * kPlanEntries) {
    const int64_t end = begin + kPlanEntries < pattern.nnz ? begin + kPlanEntries : pattern.nnz;
    __syncthreads();
    if (threadIdx.x < 2) {
      const int64_t e = threadIdx.x ? end - 1 : begin;
      span[threadIdx.x] = first_where(0, pattern.rows - 1, [&](int64_t r) { return crow_at(pattern, r + 1) > e; });
    }
    __syncthreads();
    for (int64_t e = begin + static_cast<int>(threadIdx.x); e < end; e += kThreads) {
      const int64_t row = first_where(span[0], span[1], [&](int64_t r) { return crow_at(pattern, r + 1) > e; });
      keys[e] = static_cast<uint64_t>(static_cast<uint32_t>(pattern.col[e])) << 32 | static_cast<uint64_t>(row);
      numbers[e] = static_cast<uint32_t>(e);
    }
  }
}

// Rows out of the sorted keys, and where each column begins among them.
__global__ void __launch_bounds__(kThreads) plan_transpose_kernel(const CsrView pattern, const uint64_t* keys, int32_t* row_t, void* crow_t) {
  for (int64_t e = grid_thread(); e < pattern.nnz; e += grid_threads()) row_t[e] = static_cast<int32_t>(static_cast<uint32_t>(keys[e]));
  for (int64_t c = grid_thread(); c <= pattern.cols; c += grid_threads()) {
    const int64_t begin = first_where(0, pattern.nnz, [&](int64_t e) { return keys[e] >> 32 >= static_cast<uint64_t>(c); });
    if (pattern.wide) static_cast<int64_t*>(crow_t)[c] = begin;
    else static_cast<int32_t*>(crow_t)[c] = static_cast<int32_t>(begin);
  }
}

}  // namespace sparsekern::cuda
