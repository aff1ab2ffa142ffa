// The r-th largest of each segment of a list of tensors, exactly, and the masks of what lies above: state, short segments, samples.
// Short segments (<= 8192 elements): one block each, one read of the scores, digits of 11 bits in shared memory.
// Large ones: a stratified sample brackets the threshold (after Floyd and Rivest, "Expected time bounds for selection", 1975), then a
// fixed number of sweeps (select_sweep.cuh) that return at once when nothing is left to do.
// Bytes per element: 4 (fp32) or 2 read once, the eligible mask, the mask written; bandwidth-bound. Two reads where many scores are equal,
// three where the sample misled.
// State: compiled for sm_80 and sm_90a and run under the emulator of csrc/simt; not yet run on a GPU, no time measured.
//
// budget: select_upload_kernel 32
// budget: select_short_kernel 64
// budget: select_sample_kernel 64
// promise: select_short_kernel no-fp64
// promise: select_sample_kernel no-fp64
#pragma once
#include "cuda/select_block.cuh"

namespace sparsekern::cuda {

constexpr int kTinySegment = 1024, kSmallSegment = 8192;  // elements of one block's segment
constexpr int kTinyThreads = 128, kSmallThreads = 512;
constexpr int kSample = 4096, kSampleThreads = 1024;
constexpr int kDigit = 13, kBins = 1 << kDigit;  // of a sweep
constexpr int kFinalists = 4096;                 // that one block ends with; they stand where the bins were
static_assert(kFinalists * sizeof(Rank) <= kBins * sizeof(uint32_t));

// What the next sweep does with a large segment. sift: reads the scores, writes the mask of what lies outside the bracket and lists
// what lies inside; count: reads the scores and only counts; the other two read the list instead.
enum class SelectMode : int32_t { sift, count, count_list, finish_list, done };

// The threshold is one of [low, high]: for certain once `certain`, and then it is the rank-th largest of them.
struct SelectState {
  Rank low, high;
  unsigned long long above, inside, eligible;  // counted by the sweep that runs
  int64_t k;
  uint32_t rank, listed, finalists, ticket;
  SelectMode mode;
};

struct SelectTables {
  const SelectEntry* entries;
  const SelectSegment* segments;
  SelectState* states;
  uint32_t* bins;  // kBins of each large segment
  Rank* lists;
  uint32_t* done;  // large segments that are finished
  int64_t tiny, small, large, granules;
  int32_t entry_count;
};

template <int words>
struct SelectChunk {
  unsigned long long word[words];
};

// Part of the tables travels as a parameter: nothing to cache, and a captured graph holds it. Also clears `cleared` words.
template <int words>
__global__ void __launch_bounds__(kThreads) select_upload_kernel(const __grid_constant__ SelectChunk<words> chunk, unsigned long long* to,
                                                                 int64_t count, unsigned long long* clear, int64_t cleared) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t k = first; k < count; k += stride) to[k] = chunk.word[k];
  for (int64_t k = first; k < cleared; k += stride) clear[k] = 0;
}

struct ShortScratch {
  Rank low[32], high[32];
  uint32_t able[32];
};

// One segment in `numbers`: its ranks (0: not eligible), how many there are and their range.
__device__ __forceinline__ uint32_t load_segment(const SelectEntry* entries, const SelectSegment& s, Rank* numbers, Rank& low, Rank& high,
                                                 ShortScratch& scratch) {
  const Order order(s);
  const int threads = static_cast<int>(blockDim.x);
  uint32_t able = 0;
  low = kNone;
  high = 0;
  for (int n = s.entry_begin; n < s.entry_end; ++n) {
    const SelectEntry& e = entries[n];
    const KeyMap map = key_map(s, e.score_form);
    const int numel = static_cast<int>(e.numel);
    for (int from = static_cast<int>(threadIdx.x); from < numel; from += 4 * threads) {
      uint32_t raw[4];
      bool eligible[4];
#pragma unroll
      for (int u = 0; u < 4; ++u) {  // all asked for before the first use
        const int i = from + u * threads;
        eligible[u] = i < numel && eligible_at(e, i);
        if (i < numel) raw[u] = raw_at(e, i);
      }
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        const int i = from + u * threads;
        if (i >= numel) break;
        const Rank x = eligible[u] ? order.rank(map.key(raw[u]), e.offset + i) : 0;
        numbers[e.offset + i] = x;
        if (x == 0) continue;
        ++able;
        low = x < low ? x : low;
        high = x > high ? x : high;
      }
    }
  }
  able = warp_sum(able);
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const Rank other_low = __shfl_xor_sync(kAllLanes, low, step), other_high = __shfl_xor_sync(kAllLanes, high, step);
    low = other_low < low ? other_low : low;
    high = other_high > high ? other_high : high;
  }
  if (lane_id() == 0) {
    scratch.low[warp_id()] = low;
    scratch.high[warp_id()] = high;
    scratch.able[warp_id()] = able;
  }
  __syncthreads();
  able = 0;
  for (int w = 0; w < threads / 32; ++w) {
    able += scratch.able[w];
    low = scratch.low[w] < low ? scratch.low[w] : low;
    high = scratch.high[w] > high ? scratch.high[w] : high;
  }
  return able;
}

// The segments [begin, end) in the order of size classes. Dynamic shared memory: one Rank for every element of the largest.
__global__ void __launch_bounds__(kSmallThreads, 2) select_short_kernel(const __grid_constant__ SelectTables tables, int64_t begin, int64_t end) {
  SK_DYNAMIC_SHARED(Rank, numbers);
  __shared__ BlockSelectScratch scratch;
  __shared__ ShortScratch ranges;
  for (int64_t v = begin + blockIdx.x; v < end; v += gridDim.x) {
    const SelectSegment& s = tables.segments[tables.segments[v].visit];
    Rank low, high, threshold = kNone;
    const int64_t want = wanted(s);
    const uint32_t able = load_segment(tables.entries, s, numbers, low, high, ranges);
    const uint32_t k = want <= 0 ? 0 : want < able ? static_cast<uint32_t>(want) : able;
    if (k > 0) threshold = block_select(numbers, static_cast<int>(s.numel), k, able, low, high, scratch);
    for (int n = s.entry_begin; n < s.entry_end; ++n) {
      const SelectEntry& e = tables.entries[n];
      if (e.mask_form == MaskForm::none) continue;
      const int numel = static_cast<int>(e.numel);
      for (int first = 32 * warp_id(); first < numel; first += static_cast<int>(blockDim.x)) {
        const int i = first + lane_id();
        const Rank x = i < numel ? numbers[e.offset + i] : 0;
        const bool on = x != 0 && (x >= threshold) != s.drop;
        const unsigned word = __ballot_sync(kAllLanes, on);
        if (e.mask_form == MaskForm::bits) {
          if (lane_id() == 0) static_cast<uint32_t*>(e.mask)[first >> 5] = word;
        } else if (i < numel) {
          static_cast<uint8_t*>(e.mask)[i] = on;
        }
      }
    }
    if (threadIdx.x == 0) store_result(tables.entries, s, k, threshold);
    __syncthreads();
  }
}

SK_HOST_DEVICE inline uint32_t sample_size(int64_t n) { return static_cast<uint32_t>(n < 16 * 1024 ? 1024 : n < 16 * kSample ? n / 16 : kSample); }

// The i-th of m positions in n: one in each of m equal stretches, drawn by a hash, so that no regular pattern can mislead.
SK_HOST_DEVICE inline int64_t sample_at(uint32_t i, uint32_t m, int64_t n) {
  const int64_t begin = static_cast<int64_t>(static_cast<unsigned long long>(i) * n / m);
  const int64_t width = static_cast<int64_t>(static_cast<unsigned long long>(i + 1) * n / m) - begin;
  uint32_t hash = i * 0x9e3779b9u;
  hash = (hash ^ hash >> 16) * 0x85ebca6bu;
  hash = (hash ^ hash >> 13) * 0xc2b2ae35u;
  return begin + static_cast<int64_t>((static_cast<unsigned long long>(hash ^ hash >> 16) * width) >> 32);
}

// One block per large segment: the bracket [low, high] that holds the threshold in all but a few cases in a thousand.
__global__ void __launch_bounds__(kSampleThreads, 1) select_sample_kernel(const __grid_constant__ SelectTables tables) {
  __shared__ Rank numbers[kSample];
  __shared__ BlockSelectScratch scratch;
  __shared__ uint32_t shared_count[2];
  for (int64_t v = tables.tiny + tables.small + blockIdx.x; v < tables.tiny + tables.small + tables.large; v += gridDim.x) {
    const SelectSegment& s = tables.segments[tables.segments[v].visit];
    SelectState& state = tables.states[s.state];
    const Order order(s);
    const int64_t want = wanted(s), k = want < 0 ? 0 : want < s.numel ? want : s.numel;
    if (threadIdx.x == 0) {
      shared_count[0] = shared_count[1] = 0;
      state.k = k;
      state.low = state.high = kNone;
      state.mode = SelectMode::sift;
    }
    __syncthreads();
    if (k == 0) continue;
    const uint32_t m = sample_size(s.numel);
    const KeyMap map = key_map(s, tables.entries[s.entry_begin].score_form);  // the same for all entries of a segment
    uint32_t able = 0;
    uint32_t key[kSample / kSampleThreads];
#pragma unroll
    for (int u = 0; u < kSample / kSampleThreads; ++u) {  // all asked for before the first use
      const uint32_t i = threadIdx.x + u * kSampleThreads;
      key[u] = 0;
      if (i >= m) continue;
      const int64_t index = sample_at(i, m, s.numel);
      const SelectEntry& e = tables.entries[entry_of(tables.entries, s, index)];
      if (eligible_at(e, index - e.offset)) key[u] = map.key(raw_at(e, index - e.offset));
    }
#pragma unroll
    for (int u = 0; u < kSample / kSampleThreads; ++u) {
      if (threadIdx.x + u * kSampleThreads < m) numbers[threadIdx.x + u * kSampleThreads] = key[u];
      able += key[u] != 0;
    }
    atomicAdd(&shared_count[0], able);
    __syncthreads();
    able = shared_count[0];
    // The rank in the sample, and three standard deviations of it to either side.
    const float p = static_cast<float>(k) / static_cast<float>(s.numel), at = p * static_cast<float>(m);
    const float slack = 3.f * sqrtf(at * (1.f - p)) + 3.f;
    uint32_t first = 1, last = 0xffffffffu;
    if (at + slack < static_cast<float>(able))
      first = static_cast<uint32_t>(block_select(numbers, static_cast<int>(m), static_cast<uint32_t>(at + slack) + 1, able, 1, 0xffffffffu, scratch));
    if (at - slack >= 1.f)
      if (const uint32_t r = static_cast<uint32_t>(at - slack); r <= able)
        last = static_cast<uint32_t>(block_select(numbers, static_cast<int>(m), r, able, 1, 0xffffffffu, scratch));
    uint32_t inside = 0;
    for (uint32_t i = threadIdx.x; i < m; i += kSampleThreads) inside += numbers[i] >= first && numbers[i] <= last;
    atomicAdd(&shared_count[1], inside);
    __syncthreads();
    if (threadIdx.x == 0) {
      state.low = order.first_of(first);
      state.high = order.last_of(last);
      // Many equal scores do not fit the list: they are told apart by their index first.
      const float listed = static_cast<float>(shared_count[1]) / static_cast<float>(m) * static_cast<float>(s.numel);
      state.mode = listed < 0.9f * static_cast<float>(s.capacity) ? SelectMode::sift : SelectMode::count;
    }
    __syncthreads();
  }
}

}  // namespace sparsekern::cuda
