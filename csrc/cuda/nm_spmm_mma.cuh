// nm_mma_kernel: out = W b + bias where v rows share their columns: those rows of W, as they are stored, are a dense [v, per_row] matrix, and
// so are the rows of b that their positions name. A block has 16 MT rows of one band and 128 columns; 32 entries at a time pass through four
// stages of shared memory, values and gathered rows of b by 16-byte copies, two stages ahead of the tensor cores. Each of its four warps has
// all rows and 32 columns. The positions of the next stage are read one stage earlier.
// Bound: rows * per_row * n * 2 flops on the tensor cores, and from the L2 cache, for each block, per_row * (256 + 32 MT + 1) bytes: 50 MB, or 9 us,
// for 64:2:16 at 4096^2, N = 512; the dense product takes 22 us. Chunks of 16 bytes are exchanged within a row so that the eight rows of a
// matrix load fall on different banks.
// State: compiled for sm_80 and sm_90a and run under the emulator of csrc/simt; not yet run on a GPU, no time measured.
//
// budget: nm_mma_kernel 128
// promise: nm_mma_kernel HMMA.16816.F32 LDSM.16 LDGSTS.E.128 no-fp64
#pragma once
#include "cuda/async_copy.cuh"
#include "cuda/nm_spmm.cuh"
#include "cuda/tensor_core.cuh"

namespace sparsekern::cuda {

constexpr int kMmaThreads = 128, kMmaStages = 4;
constexpr int kMmaDepth = 32;                                               // entries of a stage
constexpr int kMmaLeftRow = kMmaDepth * 2, kMmaRightRow = kMmaColumns * 2;  // bytes of a row in shared memory

struct MmaCall {
  int row_tiles;
  bool values_aligned, load_aligned, store_aligned;
};

template <int rows>
constexpr int kMmaStageBytes = rows * kMmaLeftRow + kMmaDepth * kMmaRightRow;

// Where chunk c of row r stands.
__device__ __forceinline__ int left_offset(int r, int c) { return r * kMmaLeftRow + (c ^ (r >> 1 & 3)) * 16; }
__device__ __forceinline__ int right_offset(int r, int c) { return r * kMmaRightRow + (c ^ (r & 7)) * 16; }

// Eight numbers; those from `count` on are 0.
template <class T>
__device__ __forceinline__ void copy_chunk(void* to, const T* from, int64_t count, bool aligned) {
  if (aligned && count >= 8) {
    copy16_async(to, from);
    return;
  }
#pragma unroll 1
  for (int k = 0; k < 8; ++k) static_cast<T*>(to)[k] = k < count ? from[k] : narrowed<T>(0.f);
}

template <class T, int MT>
__global__ void __launch_bounds__(kMmaThreads, 4) nm_mma_kernel(const __grid_constant__ NmArgs a, const __grid_constant__ MmaCall call) {
  constexpr int kRows = 16 * MT, kStageBytes = kMmaStageBytes<kRows>, kGathered = kMmaDepth * 16 / kMmaThreads;
  SK_DYNAMIC_SHARED(unsigned char, shared);
  const int self = static_cast<int>(threadIdx.x), lane = lane_id(), warp = warp_id();
  const int panel = static_cast<int>(blockIdx.x) / call.row_tiles;
  const int64_t row0 = static_cast<int64_t>(static_cast<int>(blockIdx.x) - panel * call.row_tiles) * kRows,
                j0 = static_cast<int64_t>(panel) * kMmaColumns;
  const int per_row = static_cast<int>(a.per_row), steps = (per_row + kMmaDepth - 1) / kMmaDepth;
  const uint8_t* index = index_of(a, row0);
  const T* values = static_cast<const T*>(a.val) + row0 * a.per_row;
  const int64_t j = j0 + self % 16 * 8;  // of this thread's chunks of b
  const T* b = static_cast<const T*>(a.b) + j;

  int64_t from[kGathered];  // where the rows of b start that this thread copies next; -1: zeros
  const auto find_rows = [&](int step) {
#pragma unroll
    for (int i = 0; i < kGathered; ++i) {
      const int e = step * kMmaDepth + self / 16 + i * (kMmaThreads / 16);
      from[i] = e < per_row ? static_cast<int64_t>(group_column(a, e) + within_group(index[e], a.group)) * a.b_row : -1;
    }
  };
  const auto load_stage = [&](int step) {
    unsigned char* left = shared + step % kMmaStages * kStageBytes;
    unsigned char* right = left + kRows * kMmaLeftRow;
#pragma unroll
    for (int i = self; i < kRows * 4; i += kMmaThreads) {
      const int k = step * kMmaDepth + i % 4 * 8;
      copy_chunk(left + left_offset(i / 4, i % 4), values + i / 4 * a.per_row + k, per_row - k, call.values_aligned);
    }
#pragma unroll
    for (int i = 0; i < kGathered; ++i) {
      const int64_t count = from[i] < 0 ? 0 : a.n - j;
      copy_chunk(right + right_offset(self / 16 + i * (kMmaThreads / 16), self % 16), b + (from[i] < 0 ? 0 : from[i]), count, call.load_aligned);
    }
    find_rows(step + 1);
  };

  float sum[MT][4][4] = {};
  find_rows(0);
#pragma unroll 1
  for (int step = 0; step < kMmaStages - 1; ++step) {
    if (step < steps) load_stage(step);
    commit_copies();
  }
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    wait_copies_but<kMmaStages - 2>();
    __syncthreads();  // this stage is there, and nobody reads the one before any more
    if (step + kMmaStages - 1 < steps) load_stage(step + kMmaStages - 1);
    commit_copies();
    const unsigned char* left = shared + step % kMmaStages * kStageBytes;
    const unsigned char* right = left + kRows * kMmaLeftRow;
#pragma unroll
    for (int k = 0; k < kMmaDepth / 16; ++k) {
      unsigned of_w[MT][4], of_b[2][4];
#pragma unroll
      for (int t = 0; t < MT; ++t) load_matrices<false>(left + left_offset(16 * t + lane % 16, 2 * k + lane / 16), of_w[t]);
#pragma unroll
      for (int p = 0; p < 2; ++p) load_matrices<true>(right + right_offset(16 * k + lane % 16, 4 * warp + 2 * p + lane / 16), of_b[p]);
#pragma unroll
      for (int t = 0; t < MT; ++t)
#pragma unroll
        for (int c = 0; c < 4; ++c) multiply_add<T>(sum[t][c], of_w[t], &of_b[c / 2][c % 2 * 2]);
    }
  }

#pragma unroll
  for (int t = 0; t < MT; ++t)
#pragma unroll
    for (int low = 0; low < 2; ++low) {
      const int64_t row = row0 + 16 * t + 8 * low + lane / 4;
      const float bias = bias_at<T>(a, row);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const float two[2] = {sum[t][c][2 * low], sum[t][c][2 * low + 1]};
        store_sums<T, 2>(a, row, j0 + 32 * warp + 8 * c + lane % 4 * 2, two, bias, call.store_aligned);
      }
    }
}

}  // namespace sparsekern::cuda
