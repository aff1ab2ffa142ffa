// Launchers of the draws and of the candidates made of them; the kernels are in sample_product.cuh.
#include "cuda/sample_product.cuh"

#include "cuda/workspace.h"

namespace sparsekern::cuda {
namespace {

// Two to four guide entries an item.
int guide_bits(int64_t items) {
  int bits = 2;
  while ((int64_t{1} << (bits - 2)) < items) ++bits;
  return bits;
}

struct TableSpace {
  Workspace space;
  SampleTables tables;
  void* scan;
  TableSpace(void* base, int64_t n_rows, int64_t n_cols) : space(base) {
    tables.size[0] = n_rows, tables.size[1] = n_cols;
    tables.most = space.take<uint32_t>(2 * kMaxBlocks);
    tables.sums = space.take<Count>(n_rows + n_cols);
    for (int k = 0; k < 2; ++k) {
      tables.guide_bits[k] = guide_bits(tables.size[k]);
      tables.guide[k] = space.take<uint32_t>((int64_t{1} << tables.guide_bits[k]) + 1);
    }
    scan = space.take<char>(static_cast<int64_t>(scan_workspace_bytes(n_rows + n_cols)));
  }
};

struct CandidateSpace {
  Workspace space;
  DrawState* states;  // [2]: of even and odd rounds
  char *tables, *difference;
  CandidateSpace(void* base, int64_t count, int64_t n_rows, int64_t n_cols)
      : space(base),
        states(space.take<DrawState>(2)),
        tables(space.take<char>(static_cast<int64_t>(sample_tables_bytes(n_rows, n_cols)))),
        difference(space.take<char>(static_cast<int64_t>(csr_setdiff_workspace_bytes(count, n_rows)))) {}
};

}  // namespace

size_t sample_tables_bytes(int64_t n_rows, int64_t n_cols) { return TableSpace(nullptr, n_rows, n_cols).space.bytes(); }

size_t gse_candidates_workspace_bytes(int64_t count, int64_t n_rows, int64_t n_cols) {
  return CandidateSpace(nullptr, count, n_rows, n_cols).space.bytes();
}

int launch_sample_tables(const SampleWeights& weights, void* tables, const DeviceProps& props, cudaStream_t stream) {
  const TableSpace s(tables, weights.n_rows, weights.n_cols);
  const int64_t items = weights.n_rows + weights.n_cols;
  SK_LAUNCH(sample_max_kernel, 2 * kMaxBlocks, kThreads, 0, stream, weights, s.tables.most);
  SK_LAUNCH(sample_units_kernel, flat_grid(items, props), kThreads, 0, stream, weights, s.tables.most, s.tables.sums);
  if (const int status = launch_scan(s.tables.sums, s.tables.sums, items, s.scan, stream)) return status;
  const int bits = s.tables.guide_bits[0] > s.tables.guide_bits[1] ? s.tables.guide_bits[0] : s.tables.guide_bits[1];
  SK_LAUNCH(sample_guide_kernel, dim3(flat_grid((int64_t{1} << bits) + 1, props), 2), kThreads, 0, stream, s.tables);
  return static_cast<int>(cudaGetLastError());
}

int launch_sample_draws(int64_t n_rows, int64_t n_cols, void* tables, const SampleDraws& draws, const DeviceProps& props, cudaStream_t stream) {
  const TableSpace s(tables, n_rows, n_cols);
  SK_LAUNCH(sample_draw_kernel, flat_grid(draws.count, props), kThreads, 0, stream, s.tables, draws);
  return static_cast<int>(cudaGetLastError());
}

int launch_gse_candidates(const SampleWeights& weights, const CsrView& pattern, const int64_t* seed, int64_t count, int64_t rounds, int32_t* rows,
                          int32_t* cols, int64_t* out_count, void* workspace, const DeviceProps& props, cudaStream_t stream) {
  const CandidateSpace s(workspace, count, weights.n_rows, weights.n_cols);
  if (const int status = cudaMemsetAsync(s.states, 0, 2 * sizeof(DrawState), stream)) return status;
  if (const int status = launch_sample_tables(weights, s.tables, props, stream)) return status;
  for (int64_t round = 0; round < rounds; ++round) {
    const DrawState* before = s.states + round % 2;
    const SampleDraws draws = {seed, before, count, rows, cols};
    if (const int status = launch_sample_draws(weights.n_rows, weights.n_cols, s.tables, draws, props, stream)) return status;
    const SetDiff difference = {rows, cols, count, pattern, rows, cols, out_count, before, s.states + (round + 1) % 2};
    if (const int status = launch_csr_setdiff(difference, s.difference, props, stream)) return status;
  }
  return 0;
}

}  // namespace sparsekern::cuda
