// What task_gram and pcgrad_combine ask of the GPU: launchers over raw pointers, free of torch.
#pragma once
#include "common/pcgrad_row.h"
#include "cuda/launch.h"

namespace sparsekern::cuda {

// One parameter; its tasks' gradients are the pointers data[row * tasks ...].
struct TaskEntry {
  void* out;  // pcgrad_combine only: new, so aligned to 16 bytes
  int64_t numel;
  int32_t first, row;  // filled in by the launchers
};

// Fixed, so that sums do not depend on the GPU; an fp32 sum covers no more elements than this.
constexpr int kGramPiece = 4096;
// Gradients that one pass multiplies with each other.
constexpr int kGramStreams = 8, kGramPairs = kGramStreams * (kGramStreams + 1) / 2;

inline int64_t gram_slots(const TaskEntry* entries, size_t count) {
  int64_t slots = static_cast<int64_t>(count);
  for (size_t t = 0; t < count; ++t) slots += entries[t].numel / kGramPiece;
  return slots;
}

// Up to 8 tasks take one pass; more are cut in blocks of 4, and each pair of blocks takes one.
struct GramTile {
  int task[kGramStreams];  // of each stream, -1: none
};
inline int gram_tiles(int tasks) {
  const int blocks = (tasks + 3) / 4;
  return tasks <= kGramStreams ? 1 : blocks * (blocks - 1) / 2;
}
inline GramTile gram_tile(int tasks, int index) {
  int low = 0, high = 1;
  for (; index > 0; --index)
    if (++high == (tasks + 3) / 4) high = ++low + 1;
  GramTile tile;
  for (int u = 0; u < kGramStreams; ++u) {
    const int task = u < 4 ? 4 * low + u : 4 * high + u - 4;
    tile.task[u] = task < tasks ? task : -1;
  }
  return tile;
}

// The parts of a workspace, from its start: products, weights, and the partial sums of one tile, pair by pair.
struct PcgradWorkspace {
  double* gram;    // [tasks, tasks]
  float* weights;  // [tasks]
  float* slots;    // [pairs, total]
  PcgradWorkspace(void* workspace, int tasks)
      : gram(static_cast<double*>(workspace)), weights(reinterpret_cast<float*>(gram + tasks * tasks)), slots(weights + tasks) {}
};
inline size_t pcgrad_workspace_bytes(int tasks, int64_t total) {
  return static_cast<size_t>(tasks) * tasks * 8 + static_cast<size_t>(tasks) * 4 + static_cast<size_t>(total) * kGramPairs * 4;
}

// All return a cudaError_t. The partial sums of entries of one dtype go to the slots [first, first + gram_slots) of `total`.
int launch_task_gram(TaskEntry* entries, size_t count, const void* const* data, int tasks, const GramTile& tile, DType dtype, float* slots,
                     int64_t first, int64_t total, const DeviceProps& props, cudaStream_t stream);
// Adds them up into `gram`, and rounded into `out` unless that is null.
int launch_gram_sum(const float* slots, int64_t total, int tasks, const GramTile& tile, double* gram, float* out, cudaStream_t stream);
// From the products, and the order [tasks, tasks - 1] on the device, to each task's share of the result.
int launch_pcgrad_weights(const double* gram, const int64_t* order, int tasks, bool mean, float* weights, cudaStream_t stream);
int launch_pcgrad_combine(TaskEntry* entries, size_t count, const void* const* data, int tasks, DType dtype, const float* weights,
                          const DeviceProps& props, cudaStream_t stream);

}  // namespace sparsekern::cuda
