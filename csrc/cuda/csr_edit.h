// What csr_from_mask, csr_validate and csr_replace ask of the GPU: launchers over raw pointers, free of torch.
#pragma once
#include "cuda/csr_rows.h"

namespace sparsekern::cuda {

// ---- a pattern from a mask ----

constexpr int kMaskTile = 8192;  // elements that a block does at a time
inline int64_t mask_tiles(int64_t numel) { return (numel + kMaskTile - 1) / kMaskTile; }

// ends[t]: how many are on in tiles 0 to t; int64 [mask_tiles(numel)]. Workspace: scan_workspace_bytes(mask_tiles(numel)).
// Returns a cudaError_t, as all here do.
int launch_mask_ends(const void* mask, int64_t numel, void* ends, void* workspace, cudaStream_t stream);

struct MaskToCsr {
  const void *mask, *ends;  // row-major bools [rows, cols], not empty; of launch_mask_ends
  int64_t rows, cols;
  const void* values;  // null, or [rows, cols]
  int width;           // bytes of one: 1, 2, 4 or 8
  void* crow;
  bool wide;
  int32_t* col;
  void* val;
  int64_t capacity;  // of col and val: nothing is written behind it, and what stays free becomes column -1 and value 0
};

int launch_csr_from_mask(const MaskToCsr& args, cudaStream_t stream);

// ---- the check of a pattern ----

enum class ValueKind : int32_t { none, f32, bf16, f16, f64 };

struct Validate {
  CsrView pattern;
  const void* val;
  ValueKind kind;
  int64_t known;    // a fault code found on the host, or 0; then nothing but `out` is touched
  int64_t* out;     // [3]
  Count* findings;  // [2]: scratch
};

int launch_csr_validate(const Validate& args, const DeviceProps& props, cudaStream_t stream);

// ---- drop and insert ----

struct MovedArray {
  const void *from, *inserted;  // [nnz]; [candidates] or null: zeros
  void* to;                     // [nnz_out]
  int64_t width;                // bytes of an element: 1, 2, 4 or 8
};
constexpr int kMovedArrays = 16;  // in one launch

struct Replace {
  CsrView pattern;
  const uint8_t* drop;  // [nnz]
  Places candidates;
  void* crow_out;
  int32_t* col_out;
  int64_t nnz_out;  // nothing is written behind it
};

size_t csr_replace_workspace_bytes(int64_t rows, int64_t candidates);

int launch_csr_replace(const Replace& args, const MovedArray* arrays, size_t count, void* workspace, const DeviceProps& props, cudaStream_t stream);

}  // namespace sparsekern::cuda
