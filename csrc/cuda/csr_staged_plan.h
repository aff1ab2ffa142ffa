// How the staged product is laid over a device: host arithmetic, free of CUDA and torch.
#pragma once
#include <algorithm>

#include "cuda/launch.h"

namespace sparsekern::cuda {

constexpr int kPanelBytes = 128;      // of a row of a tile
constexpr int kStagedThreads = 1024;  // at most; four lanes have a row of W

// Block i has panel i / row_blocks and rows_per_group * threads / 4 rows from (i % row_blocks) times that on.
struct StagedPlan {
  int threads, rows_per_group;  // 1 or 2
  int tile_rows, tiles, buffers;
  int row_blocks;
  int64_t panels, shared_bytes;
};

// Tiles have a multiple of `unit` rows, itself a multiple of 8; without room for one tile_rows is 0.
inline StagedPlan plan_staged(int64_t rows, int64_t cols, int64_t n, int size, const DeviceProps& props, int unit = 8,
                              int most_threads = kStagedThreads, int most_rows = 2) {
  StagedPlan p = {};
  p.threads = static_cast<int>(std::clamp<int64_t>((rows * 4 + 31) / 32 * 32, 64, most_threads));
  p.panels = (n * size + kPanelBytes - 1) / kPanelBytes;
  // Half the rows double the traffic of tiles, but use a device of which half would be idle.
  while (p.threads > 128 && p.threads % 64 == 0 && 2 * p.panels * ((rows * 4 + p.threads - 1) / p.threads) <= props.sms) p.threads /= 2;
  // Twice the rows halve the traffic of tiles, where there are enough blocks left.
  const int64_t twice = p.threads / 2;
  p.rows_per_group = most_rows > 1 && rows > p.threads / 4 && p.panels * ((rows + twice - 1) / twice) >= props.sms ? 2 : 1;
  const int64_t block = p.threads / 4 * p.rows_per_group;
  p.row_blocks = static_cast<int>((rows + block - 1) / block);
  // One row of the shared memory is zeros. All of b's rows at once if they fit, else two buffers.
  const int64_t room = props.shared_bytes / kPanelBytes - 1, whole = (cols + unit - 1) / unit * unit, half = room / 2 / unit * unit;
  p.buffers = whole <= room ? 1 : 2;
  if (p.buffers == 2 && half == 0) return p;
  p.tiles = static_cast<int>(p.buffers == 1 ? 1 : (whole + half - 1) / half);
  p.tile_rows = static_cast<int>(((cols + p.tiles - 1) / p.tiles + unit - 1) / unit * unit);
  p.shared_bytes = (static_cast<int64_t>(p.buffers) * p.tile_rows + 1) * kPanelBytes;
  return p;
}

// Rows, columns, entries and blocks are counted in 32 bits.
inline bool staged_fits(const StagedPlan& p, int64_t rows, int64_t n, int64_t nnz) {
  return p.shared_bytes > 0 && std::max({p.panels * p.row_blocks, rows, n, nnz}) < (int64_t{1} << 31) - kStagedThreads;
}

}  // namespace sparsekern::cuda
