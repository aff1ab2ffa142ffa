// One sweep over the large segments: every block has its share of all scores (select.cuh says what a sweep does with a segment), and the
// last block that comes out of a segment decides what the next sweep does with it. Each sweep narrows the bracket of 64-bit ranks by 13 bits,
// so that six of them are enough whatever the scores are.
// A warp works by itself on 256 elements at a time, the next ones being loaded: two windows of keys sort out what is certain with about ten
// integer operations per element; the 1 to 3 % inside the bracket go through a buffer of the warp's into the list.
//
// budget: select_sweep_kernel 80
// promise: select_sweep_kernel LDG.E.128 no-fp64
#pragma once
#include "cuda/select_tile.cuh"

namespace sparsekern::cuda {

// Block b of the grid has the granules [share(b), share(b + 1)); block_of is the inverse.
__device__ __forceinline__ int share(const SelectTables& t, int64_t block) { return static_cast<int>(block * t.granules / gridDim.x); }
__device__ __forceinline__ int block_of(const SelectTables& t, int64_t granule) {
  return static_cast<int>(((granule + 1) * gridDim.x - 1) / t.granules);
}

__device__ __forceinline__ int entry_at(const SelectTables& t, int granule) {
  int low = 0, high = t.entry_count;  // the last entry with first <= granule is in [low, high)
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (t.entries[middle].first <= granule) low = middle;
    else high = middle;
  }
  return low;
}

// The scores of a segment from granule g to stop.
__device__ __forceinline__ void sweep_scores(const SelectTables& t, int g, int stop, SweepWarp& warp) {
  for (int n = entry_at(t, g); g < stop; ++n) {
    const SelectEntry& e = t.entries[n];
    const int past = e.first + static_cast<int>((e.numel + kGranule - 1) / kGranule), to = past < stop ? past : stop;
    const int64_t begin = static_cast<int64_t>(g - e.first) * kGranule, end = static_cast<int64_t>(to - e.first) * kGranule;
    if (e.score_form == ScoreForm::f32) sweep_entry<4>(e, begin, end < e.numel ? end : e.numel, warp);
    else sweep_entry<8>(e, begin, end < e.numel ? end : e.numel, warp);
    g = to;
  }
  if (warp.buffered > 0) warp.send();
}

// The part-th of `parts` parts of a segment's list.
__device__ __forceinline__ void sweep_list(const SelectTables& t, const SelectSegment& segment, Rank* finalists, int64_t part, int64_t parts,
                                           SweepWarp& warp) {
  const SweepSegment& s = *warp.s;
  const int64_t listed = s.state->listed, end = listed * (part + 1) / parts;
  const bool finish = s.mode == SelectMode::finish_list;
#pragma unroll 4
  for (int64_t i = listed * part / parts + threadIdx.x; i < end; i += kSweepThreads) {
    const Rank x = __ldg(s.list + i);
    const bool inside = x >= s.low && x <= s.high;
    if (inside && finish) finalists[atomicAdd(&s.state->finalists, 1u)] = x;
    else if (inside) warp.count(x);
    else if (finish && (x > s.high) != s.drop) mark(t.entries, segment, s.order.index(x));
  }
}

// What comes next, by the block that was the last to leave the segment. `spare` is shared memory past the bins.
__device__ inline void decide(const SelectTables& t, const SelectSegment& s, SelectState& state, uint32_t* bins, unsigned char* spare) {
  BlockSelectScratch& scratch = *reinterpret_cast<BlockSelectScratch*>(spare);
  const Order order(s);
  const SelectMode mode = state.mode;
  Rank low = state.low, high = state.high;
  if (mode == SelectMode::finish_list) {
    Rank* numbers = reinterpret_cast<Rank*>(spare + sizeof(BlockSelectScratch));
    const Rank* finalists = reinterpret_cast<const Rank*>(bins);
    const uint32_t count = __ldcg(&state.finalists);
    for (uint32_t i = threadIdx.x; i < count; i += kSweepThreads) numbers[i] = __ldcg(finalists + i);
    __syncthreads();
    const Rank threshold = block_select(numbers, static_cast<int>(count), state.rank, count, low, high, scratch);
    for (uint32_t i = threadIdx.x; i < count; i += kSweepThreads)
      if ((numbers[i] >= threshold) != s.drop) mark(t.entries, s, order.index(numbers[i]));
    if (threadIdx.x == 0) {
      store_result(t.entries, s, state.k, threshold);
      state.mode = SelectMode::done;
      atomicAdd(t.done, 1u);
    }
    return;
  }
  const bool from_list = mode == SelectMode::count_list;
  const unsigned long long above = __ldcg(&state.above), inside = __ldcg(&state.inside), eligible = __ldcg(&state.eligible);
  const int64_t k = from_list || state.k < static_cast<int64_t>(eligible) ? state.k : static_cast<int64_t>(eligible);
  uint32_t rank = from_list ? state.rank : static_cast<uint32_t>(k - static_cast<int64_t>(above));
  SelectMode next = SelectMode::count;
  if (!from_list && k == 0) {  // a mask of zeros is still to be written
    next = mode == SelectMode::sift ? SelectMode::done : SelectMode::sift;
    low = high = kNone;
  } else if (!from_list && k <= static_cast<int64_t>(above)) {
    low = high + 1;
    high = order.last_of(0xffffffffu);
  } else if (!from_list && k > static_cast<int64_t>(above + inside)) {
    high = low - 1;
    low = order.first_of(1);
  } else {
    const int shift = bin_shift(low, high, kDigit);
    find_bin(static_cast<int>((high - low) >> shift) + 1, rank, scratch, [&](int bin) { return __ldcg(bins + bin); });
    narrow(low, high, shift, scratch.bin);
    rank = scratch.rank;
    const bool has_list = from_list || (mode == SelectMode::sift && inside <= s.capacity);
    next = has_list ? (scratch.count <= kFinalists ? SelectMode::finish_list : SelectMode::count_list)
                    : (scratch.count <= s.capacity ? SelectMode::sift : SelectMode::count);
  }
  __syncthreads();  // all have read the state
  for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kSweepThreads) bins[i] = 0;
  if (threadIdx.x != 0) return;
  state.low = low;
  state.high = high;
  state.rank = rank;
  state.k = k;
  state.above = state.inside = state.eligible = 0;
  state.ticket = 0;
  if (next == SelectMode::sift || next == SelectMode::count) state.listed = 0;
  state.mode = next;
  if (next != SelectMode::done) return;
  store_result(t.entries, s, 0, kNone);
  atomicAdd(t.done, 1u);
}

__global__ void __launch_bounds__(kSweepThreads, kSweepBlocksPerSm) select_sweep_kernel(const __grid_constant__ SelectTables tables) {
  SK_DYNAMIC_SHARED(unsigned char, shared);
  __shared__ SweepSegment current;
  __shared__ uint32_t counts[2];
  __shared__ int last;
  // One thread asks for all: the number may change now, and a block must go on or return as a whole.
  if (threadIdx.x == 0) last = __ldcg(tables.done) == tables.large;
  __syncthreads();
  if (last) return;
  uint32_t* bins = reinterpret_cast<uint32_t*>(shared);
  unsigned char* spare = shared + kBins * sizeof(uint32_t);
  for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kSweepThreads) bins[i] = 0;
  if (threadIdx.x < 2) counts[threadIdx.x] = 0;
  const int stop = share(tables, blockIdx.x + 1);
  for (int g = share(tables, blockIdx.x); g < stop;) {
    const SelectSegment& s = tables.segments[tables.entries[entry_at(tables, g)].segment];
    if (g >= s.last) {
      g = s.next;
      continue;
    }
    if (threadIdx.x == 0) current.set(tables, s);
    __syncthreads();
    const int begin = g, first_block = block_of(tables, s.first), parts = block_of(tables, s.last - 1) - first_block + 1;
    g = s.last < stop ? s.last : stop;
    const SelectMode mode = current.mode;
    const bool scores = mode == SelectMode::sift || mode == SelectMode::count;
    uint32_t* all_bins = tables.bins + static_cast<int64_t>(s.state) * kBins;
    if (mode != SelectMode::done) {
      SweepWarp warp = {&current, bins, reinterpret_cast<Rank*>(spare) + warp_id() * kBuffer, 0, 0, 0};
      if (scores) {
        sweep_scores(tables, begin, g, warp);
        const uint32_t above = warp_sum(warp.above), eligible = warp_sum(warp.eligible);
        if (lane_id() == 0) {
          atomicAdd(&counts[0], above);
          atomicAdd(&counts[1], eligible);
        }
      } else {
        sweep_list(tables, s, reinterpret_cast<Rank*>(all_bins), static_cast<int>(blockIdx.x) - first_block, parts, warp);
      }
      __syncthreads();
      if (mode != SelectMode::finish_list) {
        uint32_t inside = 0;
        for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kSweepThreads) {
          const uint32_t count = bins[i];
          if (count != 0) atomicAdd(all_bins + i, count);
          inside += count;
          bins[i] = 0;
        }
        inside = warp_sum(inside);
        if (lane_id() == 0 && inside != 0) atomicAdd(&current.state->inside, static_cast<unsigned long long>(inside));
      }
      if (threadIdx.x == 0 && scores) {
        atomicAdd(&current.state->above, counts[0]);
        atomicAdd(&current.state->eligible, counts[1]);
        counts[0] = counts[1] = 0;
      }
      __threadfence();  // what this thread wrote is there before the block says that it is through
      __syncthreads();
      if (threadIdx.x == 0) last = atomicAdd(&current.state->ticket, 1u) == static_cast<uint32_t>(parts - 1);
      __syncthreads();
      if (last) {
        __threadfence();
        decide(tables, s, *current.state, all_bins, spare);
      }
    }
    __syncthreads();
  }
}

}  // namespace sparsekern::cuda
