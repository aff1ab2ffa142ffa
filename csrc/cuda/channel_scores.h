// What channel_scores asks of the GPU: a launcher over raw pointers, free of torch, and its plan.
#pragma once
#include <algorithm>

#include "common/mask_view.h"
#include "cuda/launch.h"

namespace sparsekern::cuda {

struct ScoreEntry {
  const void *weight, *a, *b;  // rows of row_size elements one after the other, and their masks; null when the kind is none
  float* out;                  // [rows]
  int64_t row_size;            // > 0
  int32_t rows;                // > 0
  int32_t first;               // number of the first tile: filled in by the launcher
  MaskKind a_kind, b_kind;
};

// Threads that share a row: enough to have several loads in flight each, few enough that short rows leave none idle.
SK_HOST_DEVICE inline int score_threads(int64_t row_size) {
  return row_size <= 128 ? 8 : row_size <= 1024 ? 32 : row_size <= 2048 ? 64 : row_size <= 4096 ? 128 : kThreads;
}

// Rows of a tile: those that a block sums side by side, twice where they are short.
SK_HOST_DEVICE inline int score_rows(int64_t row_size) {
  const int at_once = kThreads / score_threads(row_size);
  return row_size * at_once <= 4096 ? 2 * at_once : at_once;
}

// Block b does tiles b, b + grid, ...
struct ScorePlan {
  int grid, tiles, count;
};
template <class Entry>
ScorePlan plan_scores(Entry* entries, size_t count, const DeviceProps& props, int blocks_per_sm) {
  ScorePlan plan = {0, 0, static_cast<int>(count)};
  for (size_t t = 0; t < count; ++t) {
    const int rows = score_rows(entries[t].row_size);
    entries[t].first = plan.tiles;
    plan.tiles += (entries[t].rows + rows - 1) / rows;
  }
  plan.grid = std::min(plan.tiles, props.sms * blocks_per_sm);
  return plan;
}

// All entries have this dtype. has_b: there are second masks, and beta and one_minus_beta weigh both; else beta weighs the
// first. Returns a cudaError_t; needs no workspace.
int launch_channel_scores(ScoreEntry* entries, size_t count, DType type, bool has_b, float beta, float one_minus_beta, const DeviceProps& props,
                          cudaStream_t stream);

}  // namespace sparsekern::cuda
