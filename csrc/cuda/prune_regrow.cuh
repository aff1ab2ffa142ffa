// new mask = kept | grown;  weight = +0 where the mask flips and the caller wants it;  momentum = +0 at every flip;  counts of flips.
// A thread has a word of 32 elements; a block keeps its counts until it comes to another segment.
// Bytes per element: the old mask and two bits read; weights, momentum and mask only where something flips. Bandwidth-bound; the two
// selections before it (select.cuh) read 4 bytes and the mask each.
// State: compiled for sm_80 and sm_90a and run under the emulator of csrc/simt; not yet run on a GPU, no time measured.
//
// budget: prune_regrow_kernel 40
// promise: prune_regrow_kernel LDG.E.128 no-fp64
#pragma once
#include "cuda/collective.cuh"
#include "cuda/prune_regrow.h"
#include "cuda/vector_io.cuh"

namespace sparsekern::cuda {

template <int capacity>
struct FlipTable {
  FlipEntry entry[capacity];
};

struct FlipArgs {
  ListPlan plan;
  FlipOptions options;
};

constexpr int kFlipBlocksPerSm = 6;
constexpr int kFlipSmall = 60, kFlipLarge = 480;
static_assert(sizeof(FlipTable<kFlipLarge>) + sizeof(FlipArgs) <= kParameterBytes);

__device__ __forceinline__ uint32_t mask_word(const FlipEntry& e, int64_t i, bool aligned) {
  if (e.mask_form == MaskForm::bits) return static_cast<const uint32_t*>(e.mask)[i >> 5];
  const uint8_t* bytes = static_cast<const uint8_t*>(e.mask) + i;
  uint32_t word = 0;
  if (aligned && i + 32 <= e.numel) {
    const uint4 low = reinterpret_cast<const uint4*>(bytes)[0], high = reinterpret_cast<const uint4*>(bytes)[1];
    word = bytes_to_bits(low.x) | bytes_to_bits(low.y) << 4 | bytes_to_bits(low.z) << 8 | bytes_to_bits(low.w) << 12;
    return word | bytes_to_bits(high.x) << 16 | bytes_to_bits(high.y) << 20 | bytes_to_bits(high.z) << 24 | bytes_to_bits(high.w) << 28;
  }
  for (int k = 0; k < 32 && i + k < e.numel; ++k) word |= (bytes[k] != 0 ? 1u : 0u) << k;
  return word;
}

__device__ __forceinline__ void clear_element(void* data, int width, int64_t i) {
  if (width == 4) static_cast<uint32_t*>(data)[i] = 0;
  else if (width == 2) static_cast<uint16_t*>(data)[i] = 0;
  else if (width == 8) static_cast<unsigned long long*>(data)[i] = 0;
  else
    for (int k = 0; k < width; ++k) static_cast<uint8_t*>(data)[i * width + k] = 0;
}

__device__ __forceinline__ void add_flips(const FlipOptions& o, int segment, uint32_t& dropped, uint32_t& grown) {
  const uint32_t fewer = warp_sum(dropped), more = warp_sum(grown);
  if (lane_id() == 0 && fewer != 0) atomicAdd(reinterpret_cast<unsigned long long*>(o.dropped + segment), static_cast<unsigned long long>(fewer));
  if (lane_id() == 0 && more != 0) atomicAdd(reinterpret_cast<unsigned long long*>(o.grown + segment), static_cast<unsigned long long>(more));
  dropped = grown = 0;
}

template <int capacity>
__global__ void __launch_bounds__(kThreads, kFlipBlocksPerSm)
    prune_regrow_kernel(const __grid_constant__ FlipTable<capacity> table, const __grid_constant__ FlipArgs args) {
  uint32_t dropped = 0, grown = 0;
  int segment = -1;
  for (int64_t k = blockIdx.x; k < args.plan.pieces; k += gridDim.x) {
    const Piece piece = piece_at(table.entry, args.plan, k);
    const FlipEntry& e = table.entry[piece.tensor];
    if (e.segment != segment && segment >= 0) add_flips(args.options, segment, dropped, grown);
    segment = e.segment;
    const bool aligned = is_aligned(e.mask, 16);
    for (int64_t i = piece.begin + 32 * static_cast<int>(threadIdx.x); i < piece.end; i += 32 * kThreads) {
      const uint32_t valid = e.numel - i < 32 ? (1u << (e.numel - i)) - 1 : ~0u;
      const uint32_t after = e.kept[i >> 5] | e.grown[i >> 5], before = mask_word(e, i, aligned) & valid;
      const uint32_t fewer = before & ~after, more = after & ~before;
      if (before == after) continue;
      dropped += __popc(fewer);
      grown += __popc(more);
      if (e.mask_form == MaskForm::bits) static_cast<uint32_t*>(e.mask)[i >> 5] = after;
      const uint32_t zeroed = (args.options.zero_dropped ? fewer : 0) | (args.options.zero_grown ? more : 0);
      for (uint32_t left = fewer | more; left != 0; left &= left - 1) {
        const int bit = __ffs(static_cast<int>(left)) - 1;
        if (e.mask_form == MaskForm::bools) static_cast<uint8_t*>(e.mask)[i + bit] = after >> bit & 1;
        if (e.weight && (zeroed >> bit & 1)) clear_element(e.weight, e.weight_width, i + bit);
        if (e.momentum) clear_element(e.momentum, e.momentum_width, i + bit);
      }
    }
  }
  if (segment >= 0) add_flips(args.options, segment, dropped, grown);
}

}  // namespace sparsekern::cuda
