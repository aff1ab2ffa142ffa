// What project_conflict_ and project_conflict_sgd_ ask of the GPU: launchers over raw pointers, free of torch.
#pragma once
#include "cuda/masked_sgd.h"

namespace sparsekern::cuda {

// One index of the lists.
struct ConflictEntry {
  void* param;        // project_conflict_sgd_ only
  void* momentum;     // null when momentum is 0
  const void* grad;   // g_i; project_conflict_ writes it
  const void* other;  // g_j; null: takes no part in the products and is not projected
  const void* where;  // the mask
  int64_t numel;      // may be 0
  int32_t first;      // filled in by the launchers
  int32_t row;        // of its coefficient: its list index, or 0 where one decision holds for all
  SgdKind kind;       // none, bools or bits
};

// d, q, |g_i|^2 of a piece.
struct alignas(16) ConflictSums {
  float d, q, n, unused;
};

// Fixed, so that sums do not depend on the GPU; an fp32 sum covers no more elements than this.
constexpr int kDotPiece = 4096;

// Slots that the products of these entries fill: each entry's whole pieces and its remainder, in the order of the list.
inline int64_t conflict_slots(const ConflictEntry* entries, size_t count) {
  int64_t slots = static_cast<int64_t>(count);
  for (size_t t = 0; t < count; ++t) slots += entries[t].numel / kDotPiece;
  return slots;
}

// Holds the slots of all groups of a call, then one coefficient per row; both aligned to 16 bytes.
inline size_t project_conflict_workspace_bytes(int64_t slots, int64_t rows) {
  return static_cast<size_t>(slots) * sizeof(ConflictSums) + static_cast<size_t>(rows) * sizeof(float);
}

struct JudgeOptions {
  double eps;
  const float* found_inf;  // [1] on the device, or null
  float* coefficients;     // d / q per row, 0 where nothing is projected
  float* stats;            // [rows, 4], or null
};

// All return a cudaError_t. Pass 1: the entries have gradients of this dtype; `slots` takes conflict_slots of them.
int launch_conflict_dots(ConflictEntry* entries, size_t count, DType grad, bool invert, ConflictSums* slots, const DeviceProps& props,
                         cudaStream_t stream);
// One decision over all slots of a call; or one for each entry, over the slots that these entries filled.
int launch_conflict_judge(const ConflictSums* slots, int64_t count, const JudgeOptions& options, cudaStream_t stream);
int launch_conflict_judge_each(const ConflictEntry* entries, size_t count, const ConflictSums* slots, const JudgeOptions& options,
                               cudaStream_t stream);
// Pass 2: grad -= coefficient * other inside the masks.
int launch_conflict_subtract(ConflictEntry* entries, size_t count, DType grad, const float* coefficients, bool per_tensor, const DeviceProps& props,
                             cudaStream_t stream);
// Or the masked SGD step with grad - coefficient * other; no gradient is written.
int launch_projected_sgd(ConflictEntry* entries, size_t count, DType param, DType grad, const SgdOptions& options, const float* coefficients,
                         const DeviceProps& props, cudaStream_t stream);

}  // namespace sparsekern::cuda
