// What csr_setdiff and gse_candidates ask of the GPU: launchers over raw pointers, free of torch.
#pragma once
#include "cuda/csr_rows.h"

namespace sparsekern::cuda {

// How far a sequence of draws has come: positions found, samples drawn.
struct DrawState {
  Count found, drawn;
};

struct SetDiff {
  const int32_t *rows, *cols;  // [count], below 2^31
  int64_t count;
  CsrView pattern;
  int32_t *out_rows, *out_cols;  // [count]; may be rows and cols
  int64_t* out_count;            // [1]
  const DrawState* before;       // both null, or: `after` is `before` with what this round drew and found
  DrawState* after;
};

size_t csr_setdiff_workspace_bytes(int64_t count, int64_t n_rows);

// The distinct places that the pattern does not hold, sorted by row and column, then -1. Returns a cudaError_t.
int launch_csr_setdiff(const SetDiff& args, void* workspace, const DeviceProps& props, cudaStream_t stream);

// All places that the pattern does not hold, `count` = rows * cols - nnz of them.
int launch_csr_complement(const CsrView& pattern, int64_t count, int32_t* rows, int32_t* cols, int64_t* out_count, const DeviceProps& props,
                          cudaStream_t stream);

}  // namespace sparsekern::cuda
