// Launchers of the set difference and the complement; the kernels are in csr_setdiff.cuh.
#include "cuda/csr_setdiff.cuh"

#include "cuda/workspace.h"

namespace sparsekern::cuda {
namespace {

struct SetDiffSpace {
  Workspace space;
  Count *ends, *new_ends;
  uint32_t *item, *rank;
  int32_t* fresh;
  char* scan;
  SetDiffSpace(void* base, int64_t count, int64_t n_rows)
      : space(base),
        ends(space.take<Count>(n_rows)),
        new_ends(space.take<Count>(n_rows)),
        item(space.take<uint32_t>(count)),
        rank(space.take<uint32_t>(count)),
        fresh(reinterpret_cast<int32_t*>(rank)),  // ranks are over when new columns come
        scan(space.take<char>(static_cast<int64_t>(scan_workspace_bytes(n_rows)))) {}
};

}  // namespace

size_t csr_setdiff_workspace_bytes(int64_t count, int64_t n_rows) { return SetDiffSpace(nullptr, count, n_rows).space.bytes(); }

int launch_csr_setdiff(const SetDiff& args, void* workspace, const DeviceProps& props, cudaStream_t stream) {
  const CsrView& p = args.pattern;
  const SetDiffSpace s(workspace, args.count, p.rows);
  if (p.rows > 0) {
    const Places places = {args.rows, args.cols, nullptr, args.count, p.rows, p.cols};
    if (const int status = launch_row_buckets(places, Payload::column, {s.ends, s.item, s.rank, s.scan}, props, stream)) return status;
    const int threads = row_threads(args.count + p.nnz, p.rows);
    const auto kernel = threads == 32 ? &setdiff_rows_kernel<32> : &setdiff_rows_kernel<128>;
    const SetDiffRows rows = {p, s.ends, s.item, s.fresh, s.new_ends};
    SK_LAUNCH(kernel, row_grid(p.rows, props), static_cast<unsigned>(threads), 0, stream, rows);
    if (const int status = launch_scan(s.new_ends, s.new_ends, p.rows, s.scan, stream)) return status;
  }
  SK_LAUNCH(setdiff_emit_kernel, flat_grid(args.count, props), kThreads, 0, stream, args, s.ends, s.fresh, s.new_ends);
  return static_cast<int>(cudaGetLastError());
}

int launch_csr_complement(const CsrView& pattern, int64_t count, int32_t* rows, int32_t* cols, int64_t* out_count, const DeviceProps& props,
                          cudaStream_t stream) {
  SK_LAUNCH(complement_kernel, flat_grid(count, props), kThreads, 0, stream, pattern, count, rows, cols, out_count);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace sparsekern::cuda
