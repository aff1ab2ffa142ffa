// Launchers of csr_from_mask, csr_validate and csr_replace; the kernels are in csr_edit.cuh.
#include "cuda/csr_edit.cuh"

#include <algorithm>

#include "cuda/workspace.h"

namespace sparsekern::cuda {
namespace {

struct ReplaceSpace {
  Workspace space;
  Count *ends, *new_ends;
  uint32_t *item, *rank;
  char* scan;
  ReplaceSpace(void* base, int64_t rows, int64_t candidates)
      : space(base),
        ends(space.take<Count>(rows)),
        new_ends(space.take<Count>(rows)),
        item(space.take<uint32_t>(candidates)),
        rank(space.take<uint32_t>(candidates)),
        scan(space.take<char>(static_cast<int64_t>(scan_workspace_bytes(rows)))) {}
};

}  // namespace

int launch_mask_ends(const void* mask, int64_t numel, void* ends, void* workspace, cudaStream_t stream) {
  const int64_t tiles = mask_tiles(numel);
  if (tiles == 0) return 0;
  auto* const counts = static_cast<Count*>(ends);
  SK_LAUNCH(mask_count_kernel, static_cast<unsigned>(tiles), kThreads, 0, stream, static_cast<const uint8_t*>(mask), numel, counts);
  return launch_scan(counts, counts, tiles, workspace, stream);
}

int launch_csr_from_mask(const MaskToCsr& args, cudaStream_t stream) {
  SK_LAUNCH(mask_pack_kernel, static_cast<unsigned>(mask_tiles(args.rows * args.cols)), kThreads, 0, stream, args);
  return static_cast<int>(cudaGetLastError());
}

int launch_csr_validate(const Validate& args, const DeviceProps& props, cudaStream_t stream) {
  if (args.known == 0) {
    if (const int status = cudaMemsetAsync(args.findings, 0xff, 2 * sizeof(Count), stream)) return status;
    SK_LAUNCH(validate_pointers_kernel, flat_grid(args.pattern.rows + 1, props), kThreads, 0, stream, args);
    SK_LAUNCH(validate_entries_kernel, flat_grid(args.pattern.nnz, props), kThreads, 0, stream, args);
  }
  SK_LAUNCH(validate_report_kernel, 1, 32, 0, stream, args);
  return static_cast<int>(cudaGetLastError());
}

size_t csr_replace_workspace_bytes(int64_t rows, int64_t candidates) { return ReplaceSpace(nullptr, rows, candidates).space.bytes(); }

int launch_csr_replace(const Replace& args, const MovedArray* arrays, size_t count, void* workspace, const DeviceProps& props, cudaStream_t stream) {
  const CsrView& p = args.pattern;
  if (p.rows == 0) return cudaMemsetAsync(args.crow_out, 0, p.wide ? 8 : 4, stream);
  const ReplaceSpace s(workspace, p.rows, args.candidates.count);
  if (const int status = launch_row_buckets(args.candidates, Payload::number, {s.ends, s.item, s.rank, s.scan}, props, stream)) return status;
  SK_LAUNCH(replace_count_kernel, flat_grid(p.rows * 32, props), kThreads, 0, stream, args, s.ends, s.new_ends);
  if (const int status = launch_scan(s.new_ends, s.new_ends, p.rows, s.scan, stream)) return status;
  const int threads = row_threads(p.nnz + args.candidates.count, p.rows);
  const auto kernel = threads == 32 ? &replace_move_kernel<32> : &replace_move_kernel<128>;
  // More arrays than a launch takes: the columns are written again, and the same.
  for (size_t first = 0; first == 0 || first < count; first += kMovedArrays) {
    MovedTable table{};
    table.count = static_cast<int>(std::min<size_t>(kMovedArrays, count - first));
    std::copy_n(arrays + first, table.count, table.array);
    const ReplaceRows rows = {s.ends, s.new_ends, s.item};
    SK_LAUNCH(kernel, row_grid(p.rows, props), static_cast<unsigned>(threads), 0, stream, args, rows, table);
  }
  return static_cast<int>(cudaGetLastError());
}

}  // namespace sparsekern::cuda
