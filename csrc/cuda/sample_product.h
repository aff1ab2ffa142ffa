// What sample_product and gse_candidates ask of the GPU: launchers over raw pointers, free of torch.
#pragma once
#include "cuda/csr_setdiff.h"

namespace sparsekern::cuda {

struct SampleWeights {
  const float *rows, *cols;
  int64_t n_rows, n_cols;  // at least 1, at most 2^24
};

struct SampleDraws {
  const int64_t* seed;     // [1]
  const DrawState* state;  // null, or: those at [found, count) are drawn, with the numbers from `drawn` on
  int64_t count;
  int32_t *rows, *cols;  // [count]
};

size_t sample_tables_bytes(int64_t n_rows, int64_t n_cols);

// Makes the tables in `tables`. Returns a cudaError_t, as all here do.
int launch_sample_tables(const SampleWeights& weights, void* tables, const DeviceProps& props, cudaStream_t stream);
int launch_sample_draws(int64_t n_rows, int64_t n_cols, void* tables, const SampleDraws& draws, const DeviceProps& props, cudaStream_t stream);

size_t gse_candidates_workspace_bytes(int64_t count, int64_t n_rows, int64_t n_cols);

// `rounds` times: draws what is missing of `count` places and keeps what is new.
int launch_gse_candidates(const SampleWeights& weights, const CsrView& pattern, const int64_t* seed, int64_t count, int64_t rounds, int32_t* rows,
                          int32_t* cols, int64_t* out_count, void* workspace, const DeviceProps& props, cudaStream_t stream);

}  // namespace sparsekern::cuda
