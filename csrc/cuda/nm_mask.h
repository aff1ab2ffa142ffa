// What nm_mask, nm_apply_ and nm_mask_transposable ask of the GPU: launchers over raw pointers, free of torch.
#pragma once
#include <algorithm>

#include "cuda/launch.h"

namespace sparsekern::cuda {

// A dense array in memory order as [outer, length, inner]: groups of m lie along `length`, the last of a line may be short.
struct NmShape {
  int64_t outer, length, inner, per_line;  // per_line: groups of a line
  int n, m;

  SK_HOST_DEVICE int64_t numel() const { return outer * length * inner; }
  SK_HOST_DEVICE int64_t groups() const { return outer * per_line * inner; }
  bool has_short() const { return length % m != 0; }
};

// Lines without a short group that lie one behind the other are one line.
inline NmShape nm_shape(int64_t outer, int64_t length, int64_t inner, int n, int m) {
  if (length == 1) inner *= outer, outer = 1;
  if (inner == 1 && length % m == 0) length *= outer, outer = 1;
  return {outer, length, inner, (length + m - 1) / m, n, m};
}

// Groups across lines, of up to `width` elements: so many lanes of neighbours to a thread.
SK_HOST_DEVICE constexpr int nm_lanes(int width) { return width <= 4 ? 4 : 2; }

// Behind each other, flat: m of 1, 2, 4 or 8, wide: 16 or 32; across lines, lanes: m <= 8; all in registers. tile: any other.
enum class NmPath { flat, wide, lanes, tile };
inline NmPath nm_path(const NmShape& s) {
  if (s.inner != 1) return s.m <= 8 && s.inner % nm_lanes(s.m) == 0 ? NmPath::lanes : NmPath::tile;
  if (s.has_short()) return NmPath::tile;
  return s.m <= 8 && 8 % s.m == 0 ? NmPath::flat : s.m == 16 || s.m == 32 ? NmPath::wide : NmPath::tile;
}

// Packed words come straight out of the kernel where no group of another line begins inside a word; else by way of bools.
inline bool nm_packs_at_once(const NmShape& s) { return s.inner == 1 && !s.has_short(); }
inline size_t nm_mask_workspace_bytes(const NmShape& s, bool packed) { return packed && !nm_packs_at_once(s) ? static_cast<size_t>(s.numel()) : 0; }

// numel > 0. `mask` gets numel bytes, or ceil(numel / 32) words when packed. Returns a cudaError_t.
int launch_nm_mask(const NmShape& s, DType type, const void* x, bool use_abs, void* mask, bool packed, void* workspace, const DeviceProps& props,
                   cudaStream_t stream);
int launch_nm_apply(const NmShape& s, DType type, void* x, const DeviceProps& props, cudaStream_t stream);
// [4 bands, 4 blocks], row-major; both > 0.
int launch_nm_mask_transposable(const void* x, uint8_t* mask, int64_t bands, int64_t blocks, DType type, const DeviceProps& props,
                                cudaStream_t stream);

}  // namespace sparsekern::cuda
