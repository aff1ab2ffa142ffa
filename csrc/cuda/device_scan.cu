// Launcher of the running sums; the kernels are in device_scan.cuh.
#include "cuda/device_scan.cuh"

namespace sparsekern::cuda {
namespace {

int64_t scan_chunks(int64_t count) { return (count + kScanChunk - 1) / kScanChunk; }

}  // namespace

size_t scan_workspace_bytes(int64_t count) { return static_cast<size_t>(scan_chunks(count)) * sizeof(Count); }

int launch_scan(const Count* in, Count* out, int64_t count, void* workspace, cudaStream_t stream) {
  const int64_t chunks = scan_chunks(count);
  if (chunks == 0) return 0;
  if (chunks == 1) {
    SK_LAUNCH(scan_kernel, 1, kThreads, 0, stream, in, out, count, count, nullptr);
  } else {
    auto* const sums = static_cast<Count*>(workspace);
    const auto grid = static_cast<unsigned>(chunks);
    SK_LAUNCH(scan_sums_kernel, grid, kThreads, 0, stream, in, count, sums);
    SK_LAUNCH(scan_kernel, 1, kThreads, 0, stream, sums, sums, chunks, chunks, nullptr);
    SK_LAUNCH(scan_kernel, grid, kThreads, 0, stream, in, out, count, static_cast<int64_t>(kScanChunk), sums);
  }
  return static_cast<int>(cudaGetLastError());
}

}  // namespace sparsekern::cuda
