// A warp's step of a sweep: 256 elements of one tensor sorted by two windows of keys into above, inside and below the bracket.
#pragma once
#include <algorithm>

#include "cuda/prefetch.cuh"
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
  bool nan_inside, nan_above, single;      // single: the bracket has one key

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
    single = first == last;
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
  uint32_t* bins;            // the block's
  Rank* buffer;              // of this warp
  uint32_t buffered;         // the same in all lanes
  uint32_t above, eligible;  // of this lane

  __device__ __forceinline__ void count(Rank x) { atomicAdd(&bins[(x - s->low) >> s->shift], 1u); }

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
  enum : uint32_t {
    scores_aligned = 1,
    able_bits = 2,
    able_bytes = 4,
    able_aligned = 8,
    able_inverted = 16,
    mask_bits = 32,
    mask_bytes = 64,
    mask_aligned = 128
  };
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
  // The scores of a later tile, towards L2: registers hold too few bytes in flight.
  template <int V>
  __device__ __forceinline__ void prefetch(uint32_t tile) const {
    const uint32_t i = tile + lane_id() * (8 * V);
    if (lane_id() < 32 / V && i < count) prefetch_l2(scores + static_cast<size_t>(i) * (16 / V));
  }

  __device__ __forceinline__ bool is(uint32_t flag) const { return (flags & flag) != 0; }
  template <int V>
  __device__ __forceinline__ uint32_t raw(uint32_t i) const {
    if (V == 4) return __ldg(reinterpret_cast<const uint32_t*>(scores) + i);
    return widen_bits(__ldg(reinterpret_cast<const uint16_t*>(scores) + i), form);
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
        scores[g] = __ldg(reinterpret_cast<const uint4*>(x.scores) + i / V);
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
        able[g] = i < x.count ? __ldg(reinterpret_cast<const uint32_t*>(x.able) + (i >> 5)) >> (i & 31) : 0;
      }
    } else if (x.is(SweepPart::able_bytes)) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {  // words of four
        const uint32_t i = V == 4 ? at(tile, k) : at(tile, 0) + 4 * k;
        uint32_t word = 0;
        if (whole && x.is(SweepPart::able_aligned)) {
          word = __ldg(reinterpret_cast<const uint32_t*>(x.able + i));
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

// A bracket with one key, as where many scores are equal: the indices of a tile mostly tell all of them apart at once. Leaves in `inside`
// what is still to be looked at; returns those that were counted.
__device__ __forceinline__ unsigned settle_equal(const SweepPart& x, uint32_t tile, bool lists, unsigned& above, unsigned& inside, SweepWarp& warp) {
  const SweepSegment& s = *warp.s;
  const uint32_t key = s.order.key(s.low), last = (x.count - tile < kTile ? x.count : tile + kTile) - 1;
  const Rank one = s.order.rank(key, x.first + tile), other = s.order.rank(key, x.first + last);
  const Rank low = one < other ? one : other, high = one < other ? other : one;
  if (low > s.high || high < s.low) {
    above |= low > s.high ? inside : 0;
    inside = 0;
  } else if (!lists && low >= s.low && high <= s.high && (low - s.low) >> s.shift == (high - s.low) >> s.shift) {
    const unsigned counted = inside;
    const uint32_t sum = warp_sum(static_cast<uint32_t>(__popc(counted)));
    if (lane_id() == 0) atomicAdd(&warp.bins[(low - s.low) >> s.shift], sum);
    inside = 0;
    return counted;
  }
  return 0;
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
  // The end keys of a bracket may belong to it by some of their indices only, so the rank decides. Scores are still in the L1 cache.
  unsigned listed = windows.single ? settle_equal(x, tile, lists, above, inside, warp) : 0;
  for (unsigned left = inside; lists ? __any_sync(kAllLanes, left != 0) : left != 0; left &= left - 1) {
    const int bit = left != 0 ? __ffs(static_cast<int>(left)) - 1 : 0;
    const uint32_t i = SweepTile<V>::at(tile, bit / V) + bit % V;
    const Rank rank = left != 0 ? warp.s->order.rank(warp.s->map.key(x.template raw<V>(i)), x.first + i) : 0;
    const bool mine = rank >= warp.s->low && rank <= warp.s->high;
    above |= (rank > warp.s->high ? 1u : 0u) << bit;
    listed |= (mine ? 1u : 0u) << bit;
    if (lists) {
      const unsigned lanes = __ballot_sync(kAllLanes, mine);
      if (mine) warp.buffer[warp.buffered + __popc(lanes & ((1u << lane_id()) - 1))] = rank;
      warp.buffered += __popc(lanes);
    } else if (mine) {
      warp.count(rank);
    }
  }
  warp.above += __popc(above);
  if (!lists) return;
  if (warp.buffered > kBuffered) warp.send();
  if (!x.is(SweepPart::mask_bits | SweepPart::mask_bytes)) return;
  const unsigned on = warp.s->drop ? able & ~above & ~listed : above;
#pragma unroll
  for (int g = 0; g < SweepTile<V>::groups; ++g) store_mask<V>(x, SweepTile<V>::at(tile, g), on >> (g * V) & ((1u << V) - 1));
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
    x.template prefetch<V>(tile + 3 * kGranule);
    sweep_tile<V>(now, x, tile, map, windows, lists, warp);
    now = next;
  }
}

}  // namespace sparsekern::cuda
