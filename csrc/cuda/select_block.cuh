// Selection inside one block: the r-th largest of numbers in shared memory, by digits of up to 11 bits.
#pragma once
#include "cuda/collective.cuh"
#include "cuda/select_keys.cuh"

namespace sparsekern::cuda {

constexpr int kBlockBins = 2048;

struct BlockSelectScratch {
  uint32_t bins[kBlockBins];
  uint32_t sums[32];
  uint32_t bin, count, rank;
  Rank found;
};

// Bins of the numbers in [low, high]: (x - low) >> shift.
__device__ __forceinline__ int bin_shift(Rank low, Rank high, int bits) {
  const int width = 64 - __clzll(static_cast<long long>(high - low));
  return width > bits ? width - bits : 0;
}

// The bounds of one bin; the last ends at high.
__device__ __forceinline__ void narrow(Rank& low, Rank& high, int shift, uint32_t bin) {
  const Rank begin = low + (static_cast<Rank>(bin) << shift), end = begin + ((Rank(1) << shift) - 1);
  if (end >= begin && end < high) high = end;
  low = begin;
}

// The bin with the rank-th largest number, how many it has, and the rank inside it, from the counts of all bins.
// `count_at(bin)` is asked once per bin. All threads take part and get the answer in scratch; barriers around it are the caller's.
template <class CountAt>
__device__ __forceinline__ void find_bin(int bins, uint32_t rank, BlockSelectScratch& scratch, const CountAt& count_at) {
  // Rows of 32 bins; every warp has some, the first one those at the top.
  const int rows = (bins + 31) / 32, warps = static_cast<int>(blockDim.x) / 32, per = (rows + warps - 1) / warps;
  const auto lane_count = [&](int k) {
    const int bin = (rows - 1 - (warp_id() * per + k)) * 32 + lane_id();
    return bin >= 0 && bin < bins ? count_at(bin) : 0u;
  };
  uint32_t mine = 0;
#pragma unroll 8
  for (int k = 0; k < per; ++k) mine += lane_count(k);
  mine = warp_sum(mine);
  if (lane_id() == 0) scratch.sums[warp_id()] = mine;
  __syncthreads();
  uint32_t before = 0;
  for (int w = 0; w < warp_id(); ++w) before += scratch.sums[w];
  if (before < rank && rank <= before + mine) {  // one warp
    for (int k = 0; k < per; ++k) {
      const uint32_t count = lane_count(k), up_to = warp_inclusive_sum(count), row = __shfl_sync(kAllLanes, up_to, 31);
      if (rank > before + row) {
        before += row;
        continue;
      }
      const uint32_t above = before + row - up_to;
      if (above < rank && rank <= above + count) {
        scratch.bin = static_cast<uint32_t>((rows - 1 - (warp_id() * per + k)) * 32 + lane_id());
        scratch.count = count;
        scratch.rank = rank - above;
      }
      break;
    }
  }
  __syncthreads();
}

// The rank-th largest (from 1) of those of `numbers` in [low, high]; there are `inside` of them, at least rank. Equal numbers count
// each. All threads take part, `numbers` is complete before a barrier.
__device__ inline Rank block_select(const Rank* numbers, int count, uint32_t rank, uint32_t inside, Rank low, Rank high,
                                    BlockSelectScratch& scratch) {
  const int threads = static_cast<int>(blockDim.x), t = static_cast<int>(threadIdx.x);
  while (low < high && inside > 1) {
    const int shift = bin_shift(low, high, 11), bins = static_cast<int>((high - low) >> shift) + 1;
    for (int k = t; k < bins; k += threads) scratch.bins[k] = 0;
    __syncthreads();
    for (int k = t; k < count; k += threads) {
      const Rank x = numbers[k];
      if (x >= low && x <= high) atomicAdd(&scratch.bins[(x - low) >> shift], 1u);
    }
    __syncthreads();
    find_bin(bins, rank, scratch, [&](int bin) { return scratch.bins[bin]; });
    narrow(low, high, shift, scratch.bin);
    inside = scratch.count;
    rank = scratch.rank;
    __syncthreads();
  }
  if (low < high) {  // one number is left: it is the one
    for (int k = t; k < count; k += threads)
      if (numbers[k] >= low && numbers[k] <= high) scratch.found = numbers[k];
    __syncthreads();
    low = scratch.found;
    __syncthreads();
  }
  return low;
}

}  // namespace sparsekern::cuda
