// What is ranked: 64-bit numbers, all different, key << index bits | place. A larger key is taken first, of equal keys the
// one with the lower index, so that ties need no treatment of their own. Keys are those of common/keys.h: 1 for NaN, numbers
// above, 0 for what is not eligible.
#pragma once
#include "common/keys.h"
#include "cuda/select.h"
#include "cuda/vector_io.cuh"

namespace sparsekern::cuda {

using Rank = unsigned long long;  // the type that 64-bit atomics take
constexpr Rank kNone = ~Rank(0);  // above everything

// key = base + magnitude * (negative ? down : up), so that a key costs one multiply-add; a NaN's comes out outside
// [least, most], the keys of numbers, and is set to `nan`. `reversed` turns the order round: key -> top - key.
struct KeyMap {
  uint32_t magnitude, sign, infinity, base, up, down, nan, least, most;

  template <class Format>
  __device__ __forceinline__ void set(bool largest, bool use_abs, bool reversed) {
    magnitude = Format::kMagnitude;
    sign = Format::kSign;
    infinity = Format::kInfinity;
    base = KeyOrder<Format>(largest, use_abs).base;
    up = largest ? 1u : ~0u;
    down = use_abs ? up : 0u - up;
    nan = kNaNKey;
    least = use_abs ? 2 : sign - infinity;
    most = use_abs ? infinity + 2 : sign + infinity;
    if (!reversed) return;
    const uint32_t top = magnitude | sign, other = top - most;
    base = top - base;
    up = 0u - up;
    down = 0u - down;
    nan = top - nan;
    most = top - least;
    least = other;
  }

  __device__ __forceinline__ uint32_t key(uint32_t raw) const {
    const uint32_t size = raw & magnitude;
    return size > infinity ? nan : base + size * (raw & sign ? down : up);
  }
};

__device__ __forceinline__ bool is_narrow(ScoreForm form) { return form == ScoreForm::bf16 || form == ScoreForm::f16; }

__device__ __forceinline__ KeyMap key_map(const SelectSegment& s, ScoreForm form) {
  KeyMap map;
  if (form == ScoreForm::bf16) map.set<BFloat16Bits>(s.largest, s.use_abs, s.drop);
  else if (form == ScoreForm::f16) map.set<Float16Bits>(s.largest, s.use_abs, s.drop);
  else map.set<Float32>(s.largest, s.use_abs, s.drop);
  return map;
}

__device__ __forceinline__ uint32_t widen_bits(uint32_t raw, ScoreForm form) {
  if (form == ScoreForm::bf16_as_f32) return raw << 16;
  if (form != ScoreForm::f16_as_f32) return raw;
  const unsigned short half = static_cast<unsigned short>(raw);
  return __float_as_uint(__half2float(*reinterpret_cast<const __half*>(&half)));
}

__device__ __forceinline__ uint32_t raw_at(const SelectEntry& e, int64_t i) {
  if (e.score_form == ScoreForm::f32) return static_cast<const uint32_t*>(e.scores)[i];
  return widen_bits(static_cast<const uint16_t*>(e.scores)[i], e.score_form);
}

__device__ __forceinline__ bool eligible_at(const SelectEntry& e, int64_t i) {
  if (e.eligible_form == MaskForm::none) return true;
  const bool set = e.eligible_form == MaskForm::bools ? static_cast<const uint8_t*>(e.eligible)[i] != 0
                                                      : static_cast<const uint32_t*>(e.eligible)[i >> 5] >> (i & 31) & 1;
  return set != e.eligible_inverted;
}

// Between an element of a segment and its rank.
struct Order {
  int index_bits;
  uint32_t last;  // the largest index
  bool mirror;    // dropping begins at the highest index

  Order() = default;
  __device__ __forceinline__ explicit Order(const SelectSegment& s) {
    index_bits = s.numel <= 1 ? 0 : 64 - __clzll(static_cast<long long>(s.numel - 1));
    last = static_cast<uint32_t>(s.numel - 1);
    mirror = s.drop;
  }
  __device__ __forceinline__ Rank rank(uint32_t key, int64_t index) const {
    const uint32_t i = static_cast<uint32_t>(index);
    return static_cast<Rank>(key) << index_bits | (mirror ? i : last - i);
  }
  __device__ __forceinline__ int64_t index(Rank rank) const {
    const uint32_t place = static_cast<uint32_t>(rank & ((Rank(1) << index_bits) - 1));
    return mirror ? place : last - place;
  }
  __device__ __forceinline__ uint32_t key(Rank rank) const {
    const Rank key = rank >> index_bits;
    return key < 0xffffffffu ? static_cast<uint32_t>(key) : 0xffffffffu;
  }
  __device__ __forceinline__ Rank first_of(uint32_t key) const { return static_cast<Rank>(key) << index_bits; }
  __device__ __forceinline__ Rank last_of(uint32_t key) const { return first_of(key) | ((Rank(1) << index_bits) - 1); }
};

// The entry of a segment that holds element `index`.
__device__ __forceinline__ int entry_of(const SelectEntry* entries, const SelectSegment& s, int64_t index) {
  int low = s.entry_begin, high = s.entry_end;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (entries[middle].offset <= index) low = middle;
    else high = middle;
  }
  return low;
}

// Sets one element of a mask that was written before.
__device__ __forceinline__ void mark(const SelectEntry* entries, const SelectSegment& s, int64_t index) {
  const SelectEntry& e = entries[entry_of(entries, s, index)];
  const int64_t i = index - e.offset;
  if (e.mask_form == MaskForm::bools) static_cast<uint8_t*>(e.mask)[i] = 1;
  else if (e.mask_form == MaskForm::bits) atomicOr(static_cast<unsigned*>(e.mask) + (i >> 5), 1u << (i & 31));
}

// The threshold and the count of a segment whose k-th element has this rank. k = 0: NaN.
__device__ __forceinline__ void store_result(const SelectEntry* entries, const SelectSegment& s, int64_t k, Rank rank) {
  if (s.count) *s.count = k;
  if (!s.threshold) return;
  const uint32_t key = k == 0 ? kNaNKey : Order(s).key(rank);
  const ScoreForm form = s.entry_begin < s.entry_end ? entries[s.entry_begin].score_form : ScoreForm::f32;
  float value;
  if (form == ScoreForm::bf16) {
    value = __uint_as_float(static_cast<uint32_t>(KeyOrder<BFloat16Bits>(s.largest, s.use_abs).bits(static_cast<uint16_t>(key))) << 16);
  } else if (form == ScoreForm::f16) {
    value = __uint_as_float(widen_bits(KeyOrder<Float16Bits>(s.largest, s.use_abs).bits(static_cast<uint16_t>(key)), ScoreForm::f16_as_f32));
  } else {
    value = __uint_as_float(KeyOrder<Float32>(s.largest, s.use_abs).bits(key));
  }
  if (s.threshold_type == DType::f32) *static_cast<float*>(s.threshold) = value;
  else if (s.threshold_type == DType::bf16) *static_cast<__nv_bfloat16*>(s.threshold) = from_float<__nv_bfloat16>(value);
  else *static_cast<__half*>(s.threshold) = from_float<__half>(value);
}

__device__ __forceinline__ int64_t wanted(const SelectSegment& s) { return s.k_at ? *s.k_at : s.k; }

}  // namespace sparsekern::cuda
