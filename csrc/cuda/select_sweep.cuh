// One sweep over the large segments: every block has its share of all scores (select.cuh says what a sweep does with a segment), and the
// last block that comes out of a segment decides what the next sweep does with it. Each sweep narrows the bracket of 64-bit ranks by 13 bits,
// so that six of them are enough whatever the scores are.
// A warp works by itself on 256 elements at a time, the next ones being loaded: two windows of keys sort out what is certain with about ten
// integer operations per element; the 1 to 3 % inside the bracket go through a buffer of the warp's into the list.
//
// budget: select_sweep_kernel 80
// promise: select_sweep_kernel LDG.E.128 no-fp64
#pragma once
#include <algorithm>

#include "cuda/select.cuh"

namespace sparsekern::cuda {

constexpr int kSweepThreads = 384, kSweepWarps = kSweepThreads / 32, kSweepBlocksPerSm = 2;
constexpr int kTile = 256;                     // elements of a warp's step
constexpr int kGranule = kTile * kSweepWarps;  // of a block's
constexpr int kBuffered = 128;                 // a warp with more candidates sends them off
constexpr int kBuffer = kBuffered + kTile;
constexpr int kSpareShared = std::max(kSweepWarps * kBuffer * sizeof(Rank), sizeof(BlockSelectScratch) + kFinalists * sizeof(Rank));
constexpr int kSweepShared = kBins * sizeof(uint32_t) + kSpareShared;  // bins, then buffers; whoever decides has those for itself
static_assert(kBins * sizeof(uint32_t) % alignof(BlockSelectScratch) == 0);

// The certain part of a bracket, as windows of keys: x - start < length.
struct Windows {
  uint32_t base, inside, to_above, above;  // base is that of the map less the start of the first window
  bool nan_inside, nan_above;

  __device__ __forceinline__ Windows(const KeyMap& map, const Order& order, Rank low, Rank high) {
    const uint32_t first = order.key(low), last = order.key(high);
    const uint32_t start = first > map.least ? first : map.least, stop = last < map.most ? last : map.most;
    base = map.base - start;
    inside = start <= stop ? stop - start + 1 : 0;
    const uint32_t over = last >= map.least ? last + 1 : map.least;
    above = last < map.most ? map.most - over + 1 : 0;
    to_above = start - over;
    nan_inside = map.nan >= first && map.nan <= last;
    nan_above = map.nan > last;
  }
};

// What all warps of a block need of the segment they are in. In shared memory: read for the few that lie inside the bracket.
struct SweepSegment {
  Rank low, high;
  Rank* list;
  SelectState* state;
  KeyMap map;
  Order order;
  uint32_t capacity;
  int shift;
  SelectMode mode;
  bool drop;

  __device__ __forceinline__ void set(const SelectTables& t, const SelectSegment& s) {
    state = t.states + s.state;
    low = state->low;
    high = state->high;
    mode = state->mode;
    list = t.lists + s.list;
    map = key_map(s, t.entries[s.entry_begin].score_form);  // the same for all entries of a segment
    order = Order(s);
    capacity = s.capacity;
    shift = bin_shift(low, high, kDigit);
    drop = s.drop;
  }
};

// What a warp carries through its part of a segment.
struct SweepWarp {
  SweepSegment* s;
  uint32_t* bins;                    // the block's
  Rank* buffer;                      // of this warp
  uint32_t buffered;                 // the same in all lanes
  uint32_t above, inside, eligible;  // of this lane

  __device__ __forceinline__ void count(Rank x) { atomicAdd(&bins[(x - s->low) >> s->shift], 1u); }

  // Neighbours with equal scores meet in one bin.
  __device__ __forceinline__ void count_warp(Rank x, bool mine, unsigned lanes) {
    const uint32_t bin = static_cast<uint32_t>((x - s->low) >> s->shift), first = __shfl_sync(kAllLanes, bin, __ffs(static_cast<int>(lanes)) - 1);
    if (__all_sync(kAllLanes, !mine || bin == first)) {
      if (lane_id() == 0) atomicAdd(&bins[first], static_cast<uint32_t>(__popc(lanes)));
    } else if (mine) {
      atomicAdd(&bins[bin], 1u);
    }
  }

  __device__ __forceinline__ void send() {
    __syncwarp();
    uint32_t at = 0;
    if (lane_id() == 0) at = atomicAdd(&s->state->listed, buffered);
    at = __shfl_sync(kAllLanes, at, 0);
    for (uint32_t i = lane_id(); i < buffered; i += 32) {
      const Rank x = buffer[i];
      if (at + i < s->capacity) s->list[at + i] = x;
      count(x);
    }
    __syncwarp();
    buffered = 0;
  }
};

// A part of one entry, as a warp sees it. Few registers: flags in one, offsets of 32 bits.
struct SweepPart {
  enum : uint32_t { scores_aligned = 1, able_bits = 2, able_bytes = 4, able_aligned = 8, able_inverted = 16, mask_bits = 32, mask_bytes = 64, mask_aligned = 128 };
  const unsigned char* scores;
  const unsigned char* able;
  unsigned char* mask;
  uint32_t count, first, flags;  // elements; the index of the first one in its segment
  ScoreForm form;

  // The elements [begin, end) of an entry; begin is a multiple of the granule.
  __device__ __forceinline__ SweepPart(const SelectEntry& e, int64_t begin, int64_t end, int group) {
    const int width = e.score_form == ScoreForm::f32 ? 4 : 2;
    form = e.score_form;
    count = static_cast<uint32_t>(end - begin);
    first = static_cast<uint32_t>(e.offset + begin);
    scores = static_cast<const unsigned char*>(e.scores) + begin * width;
    able = static_cast<const unsigned char*>(e.eligible) + (e.eligible_form == MaskForm::bits ? begin / 8 : begin);
    mask = static_cast<unsigned char*>(e.mask) + (e.mask_form == MaskForm::bits ? begin / 8 : begin);
    flags = 0;
    set(scores_aligned, is_aligned(scores, 16));
    set(able_bits, e.eligible_form == MaskForm::bits);
    set(able_bytes, e.eligible_form == MaskForm::bools);
    set(able_aligned, is_aligned(able, group));
    set(able_inverted, e.eligible_inverted);
    set(mask_bits, e.mask_form == MaskForm::bits);
    set(mask_bytes, e.mask_form == MaskForm::bools);
    set(mask_aligned, is_aligned(mask, group));
  }

  __device__ __forceinline__ void set(uint32_t flag, bool on) { flags |= on ? flag : 0u; }
  __device__ __forceinline__ bool is(uint32_t flag) const { return (flags & flag) != 0; }
  __device__ __forceinline__ uint32_t raw(uint32_t i) const {
    if (form == ScoreForm::f32) return reinterpret_cast<const uint32_t*>(scores)[i];
    return widen_bits(reinterpret_cast<const uint16_t*>(scores)[i], form);
  }
};

// A lane has 16 bytes of scores, V elements, in each of 8 / V groups; group g holds elements at(tile, g) and on.
template <int V>
struct SweepTile {
  static constexpr int groups = 8 / V;
  uint4 scores[groups];
  uint32_t able[2];  // the mask's bytes, or its bits in able[g]

  static __device__ __forceinline__ uint32_t at(uint32_t tile, int g) { return tile + (g * 32 + lane_id()) * V; }

  __device__ __forceinline__ void load(const SweepPart& x, uint32_t tile) {
    const bool whole = x.count - tile >= kTile;
#pragma unroll
    for (int g = 0; g < groups; ++g) {
      const uint32_t i = at(tile, g);
      if (whole && x.is(SweepPart::scores_aligned)) {
        scores[g] = reinterpret_cast<const uint4*>(x.scores)[i / V];
        continue;
      }
      uint32_t word[4] = {0, 0, 0, 0};
#pragma unroll
      for (int k = 0; k < V; ++k) {
        if (i + k >= x.count) continue;
        if (V == 4) word[k & 3] = reinterpret_cast<const uint32_t*>(x.scores)[i + k];
        else word[k / 2] |= static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(x.scores)[i + k]) << (k % 2 * 16);
      }
      scores[g] = make_uint4(word[0], word[1], word[2], word[3]);
    }
    if (x.is(SweepPart::able_bits)) {
#pragma unroll
      for (int g = 0; g < groups; ++g) {
        const uint32_t i = at(tile, g);
        able[g] = i < x.count ? reinterpret_cast<const uint32_t*>(x.able)[i >> 5] >> (i & 31) : 0;
      }
    } else if (x.is(SweepPart::able_bytes)) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {  // words of four
        const uint32_t i = V == 4 ? at(tile, k) : at(tile, 0) + 4 * k;
        uint32_t word = 0;
        if (whole && x.is(SweepPart::able_aligned)) {
          word = *reinterpret_cast<const uint32_t*>(x.able + i);
        } else {
#pragma unroll
          for (int b = 0; b < 4; ++b)
            if (i + b < x.count) word |= static_cast<uint32_t>(x.able[i + b]) << (8 * b);
        }
        able[k] = word;
      }
    }
  }

  // V bits of group g; none past the end.
  __device__ __forceinline__ unsigned able_bits(const SweepPart& x, uint32_t tile, int g) const {
    constexpr unsigned all = (1u << V) - 1;
    unsigned bits = all;
    if (x.is(SweepPart::able_bits)) bits = able[g] & all;
    else if (x.is(SweepPart::able_bytes)) bits = V == 4 ? bytes_to_bits(able[g]) : bytes_to_bits(able[0]) | bytes_to_bits(able[1]) << 4;
    if (x.is(SweepPart::able_inverted)) bits ^= all;
    const uint32_t i = at(tile, g);
    if (i + V > x.count) bits &= i < x.count ? (1u << (x.count - i)) - 1 : 0;
    return bits;
  }

  __device__ __forceinline__ uint32_t raw(int g, int k, ScoreForm form) const {
    const uint32_t word[4] = {scores[g].x, scores[g].y, scores[g].z, scores[g].w};
    if (V == 4) return word[k & 3];
    const uint32_t half = k % 2 ? word[k / 2] >> 16 : word[k / 2] & 0xffff;
    return is_narrow(form) ? half : widen_bits(half, form);
  }
};

// V mask bits of every lane into the mask, from element i on.
template <int V>
__device__ __forceinline__ void store_mask(const SweepPart& x, uint32_t i, unsigned bits) {
  if (x.is(SweepPart::mask_bits)) {
    constexpr int lanes = 32 / V;  // that share a word
    unsigned word = bits << (V * (lane_id() % lanes));
#pragma unroll
    for (int step = 1; step < lanes; step *= 2) word |= __shfl_xor_sync(kAllLanes, word, step);
    if (lane_id() % lanes == 0 && i < x.count) reinterpret_cast<uint32_t*>(x.mask)[i >> 5] = word;
    return;
  }
  if (x.is(SweepPart::mask_aligned) && i + V <= x.count) {
#pragma unroll
    for (int k = 0; k < V / 4; ++k) reinterpret_cast<uint32_t*>(x.mask + i)[k] = (bits >> (4 * k) & 15u) * 0x00204081u & 0x01010101u;
    return;
  }
#pragma unroll
  for (int k = 0; k < V; ++k)
    if (i + k < x.count) x.mask[i + k] = bits >> k & 1;
}

template <int V>
__device__ __forceinline__ void sweep_tile(const SweepTile<V>& t, const SweepPart& x, uint32_t tile, const KeyMap& map, const Windows& windows,
                                           bool lists, SweepWarp& warp) {
  const uint32_t magnitude = V == 4 ? Float32::kMagnitude : map.magnitude, sign = V == 4 ? Float32::kSign : map.sign;
  const uint32_t infinity = V == 4 ? Float32::kInfinity : map.infinity;
  unsigned above = 0, inside = 0, able = 0;  // bit g * V + k
#pragma unroll
  for (int g = 0; g < SweepTile<V>::groups; ++g) {
    able |= t.able_bits(x, tile, g) << (g * V);
#pragma unroll
    for (int k = 0; k < V; ++k) {
      const uint32_t raw = t.raw(g, k, x.form), size = raw & magnitude;
      const uint32_t at = windows.base + size * (raw & sign ? map.down : map.up);
      if (at < windows.inside) inside |= 1u << (g * V + k);
      if (at + windows.to_above < windows.above) above |= 1u << (g * V + k);
      if ((windows.nan_inside || windows.nan_above) && size > infinity) {
        inside |= windows.nan_inside ? 1u << (g * V + k) : 0;
        above |= windows.nan_above ? 1u << (g * V + k) : 0;
      }
    }
  }
  above &= able;
  inside &= able;
  warp.eligible += __popc(able);
  unsigned listed = 0;
  // The bracket's end keys may belong to it by some of their indices only, so the rank decides. Scores are still in the L1 cache.
  for (unsigned left = inside; __any_sync(kAllLanes, left != 0); left &= left - 1) {
    const int bit = __ffs(static_cast<int>(left)) - 1;
    Rank rank = 0;
    bool mine = false;
    if (left != 0) {
      const uint32_t i = SweepTile<V>::at(tile, bit / V) + bit % V;
      rank = warp.s->order.rank(warp.s->map.key(x.raw(i)), x.first + i);
      mine = rank >= warp.s->low && rank <= warp.s->high;
      above |= (rank > warp.s->high ? 1u : 0u) << bit;
      listed |= (mine ? 1u : 0u) << bit;
    }
    const unsigned lanes = __ballot_sync(kAllLanes, mine);
    if (lanes == 0) continue;
    if (lists) {
      if (mine) warp.buffer[warp.buffered + __popc(lanes & ((1u << lane_id()) - 1))] = rank;
      warp.buffered += __popc(lanes);
    } else {
      warp.count_warp(rank, mine, lanes);
    }
  }
  warp.above += __popc(above);
  warp.inside += __popc(listed);
  if (!lists) return;
  if (warp.buffered > kBuffered) warp.send();
  if (!x.is(SweepPart::mask_bits | SweepPart::mask_bytes)) return;
  const unsigned on = warp.s->drop ? able & ~above & ~listed : above;
#pragma unroll
  for (int g = 0; g < SweepTile<V>::groups; ++g)
    store_mask<V>(x, SweepTile<V>::at(tile, g), on >> (g * V) & ((1u << V) - 1));
}

template <int V>
__device__ __forceinline__ void sweep_entry(const SelectEntry& entry, int64_t begin, int64_t end, SweepWarp& warp) {
  const SweepPart x(entry, begin, end, V);
  const KeyMap map = warp.s->map;
  const Windows windows(map, warp.s->order, warp.s->low, warp.s->high);
  const bool lists = warp.s->mode == SelectMode::sift;
  SweepTile<V> now, next;
  uint32_t tile = kTile * warp_id();
  if (tile < x.count) now.load(x, tile);
  for (; tile < x.count; tile += kGranule) {
    if (x.count - tile > kGranule) next.load(x, tile + kGranule);
    sweep_tile<V>(now, x, tile, map, windows, lists, warp);
    now = next;
  }
}

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
  for (int64_t i = listed * part / parts + threadIdx.x; i < end; i += kSweepThreads) {
    const Rank x = s.list[i];
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
  __shared__ uint32_t counts[3];
  __shared__ int last;
  if (__ldcg(tables.done) == tables.large) return;
  uint32_t* bins = reinterpret_cast<uint32_t*>(shared);
  unsigned char* spare = shared + kBins * sizeof(uint32_t);
  for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kSweepThreads) bins[i] = 0;
  if (threadIdx.x < 3) counts[threadIdx.x] = 0;
  const int stop = share(tables, blockIdx.x + 1);
  for (int g = share(tables, blockIdx.x); g < stop;) {
    const SelectSegment& s = tables.segments[tables.entries[entry_at(tables, g)].segment];
    if (threadIdx.x == 0) current.set(tables, s);
    __syncthreads();
    const int begin = g, first_block = block_of(tables, s.first), parts = block_of(tables, s.last - 1) - first_block + 1;
    g = s.last < stop ? s.last : stop;
    const SelectMode mode = current.mode;
    const bool scores = mode == SelectMode::sift || mode == SelectMode::count;
    uint32_t* all_bins = tables.bins + static_cast<int64_t>(s.state) * kBins;
    if (mode != SelectMode::done) {
      SweepWarp warp = {&current, bins, reinterpret_cast<Rank*>(spare) + warp_id() * kBuffer, 0, 0, 0, 0};
      if (scores) {
        sweep_scores(tables, begin, g, warp);
        const uint32_t above = warp_sum(warp.above), inside = warp_sum(warp.inside), eligible = warp_sum(warp.eligible);
        if (lane_id() == 0) {
          atomicAdd(&counts[0], above);
          atomicAdd(&counts[1], inside);
          atomicAdd(&counts[2], eligible);
        }
      } else {
        sweep_list(tables, s, reinterpret_cast<Rank*>(all_bins), static_cast<int>(blockIdx.x) - first_block, parts, warp);
      }
      __syncthreads();
      if (mode != SelectMode::finish_list) {
        for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kSweepThreads) {
          if (bins[i] != 0) atomicAdd(all_bins + i, bins[i]);
          bins[i] = 0;
        }
      }
      if (threadIdx.x == 0 && scores) {
        atomicAdd(&current.state->above, counts[0]);
        atomicAdd(&current.state->inside, counts[1]);
        atomicAdd(&current.state->eligible, counts[2]);
        counts[0] = counts[1] = counts[2] = 0;
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
