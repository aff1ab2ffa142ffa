// Exact selection of the k first elements of segments in one call: shared by topk_mask and prune_regrow_.
#pragma once
#include <ATen/core/Tensor.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "common/check.h"
#include "common/keys.h"

namespace sparsekern {

// One list entry: a row-major tensor of scores, and which of its elements are candidates (with `invert`: those not in the mask).
struct ScoreView {
  const void* data = nullptr;
  at::ScalarType type = at::kFloat;
  int64_t numel = 0;
  MaskView eligible;
  bool invert = false;
};

// Where a mask goes; `begin` is the element that index 0 of a call means.
struct MaskOut {
  MaskKind kind = MaskKind::none;
  void* data = nullptr;
  int64_t begin = 0;
};

struct SelectOptions {
  bool largest = true, use_abs = true, global = false;
};

struct Selected {
  std::vector<double> thresholds;  // per segment the value taken last, NaN if none
};

// A dense entry, or a row-major copy of it which `kept` keeps alive.
ScoreView score_view(const char* op, const char* name, size_t index, const at::Tensor& scores, std::vector<at::Tensor>& kept);

// Candidates per segment: per entry, or with `global` all of them together.
std::vector<int64_t> count_eligible(const std::vector<ScoreView>& scores, bool global);

// Takes the k[s] first elements of each segment, 0 <= k[s] <= its candidates. `masks` is empty where only thresholds are wanted.
Selected select_elements(const std::vector<ScoreView>& scores, const std::vector<MaskOut>& masks, const std::vector<int64_t>& k,
                         const SelectOptions& options);

}  // namespace sparsekern
