// Exact selection over lists of tensors on the GPU, for topk_mask, select_threshold and prune_regrow_; free of torch.
#pragma once
#include "cuda/launch.h"

namespace sparsekern::cuda {

enum class MaskForm : int8_t { none, bools, bits };
// How scores become keys: in their own width, or widened to fp32 where a segment mixes dtypes.
enum class ScoreForm : int8_t { f32, bf16, f16, bf16_as_f32, f16_as_f32 };

// One tensor, row-major.
struct SelectEntry {
  const void* scores;
  const void* eligible;  // form none: everything is
  void* mask;            // form none: not wanted; bits are whole words
  int64_t numel;
  ScoreForm score_form;
  MaskForm eligible_form, mask_form;
  bool eligible_inverted;
  // Filled in by the launcher: the segment, the first granule of work, and where in the segment the entry begins.
  int32_t segment, first;
  int64_t offset;
};

// What is ranked together: the entries [entry_begin, entry_end). Segments follow each other without gaps.
struct SelectSegment {
  const int64_t* k_at;  // on the device; null: k
  int64_t k;
  void* threshold;  // of threshold_type, or null
  int64_t* count;   // or null
  int32_t entry_begin, entry_end;
  DType threshold_type;
  bool largest, use_abs;
  bool drop;  // the mask is everything eligible but the last k; no threshold, no count
  // Filled in by the launcher.
  int32_t visit;        // the number of the segment that comes at this place when they are sorted by size class
  int32_t state;        // of a large segment, else -1
  int32_t first, last;  // granules
  int64_t numel, list;  // elements; where its candidates begin
  uint32_t capacity;    // of that list
  int32_t next;         // granule where the next large segment begins
};

constexpr int64_t kSelectLimit = (int64_t(1) << 32) - (1 << 16);  // elements of one segment: offsets of 32 bits, with room to run over

struct SelectPlan {
  int64_t tiny = 0, small = 0, large = 0;  // segments of each size class
  int64_t granules = 0, candidates = 0;
  size_t segments_at = 0, cleared_at = 0, states_at = 0, lists_at = 0, bytes = 0;  // in the workspace; histograms stand at cleared_at
};

// Fills in the launcher's fields. `bytes` of the plan is the workspace that the launch needs, 16-byte aligned.
SelectPlan plan_select(SelectEntry* entries, size_t entry_count, SelectSegment* segments, size_t segment_count);

// Returns a cudaError_t. One launch brings the tables (a few, beyond 200 segments), one each does the tiny and the small segments, and
// seven all the large ones.
int launch_select(const SelectEntry* entries, size_t entry_count, const SelectSegment* segments, size_t segment_count, const SelectPlan& plan,
                  void* workspace, const DeviceProps& props, cudaStream_t stream);

}  // namespace sparsekern::cuda
