// Launcher of the row buckets; the kernels are in csr_rows.cuh.
#include "cuda/csr_rows.cuh"

namespace sparsekern::cuda {

int launch_row_buckets(const Places& places, Payload payload, const RowBuckets& buckets, const DeviceProps& props, cudaStream_t stream) {
  if (const int status = cudaMemsetAsync(buckets.ends, 0, static_cast<size_t>(places.n_rows) * sizeof(Count), stream)) return status;
  if (places.count == 0 || places.n_rows == 0) return 0;
  const unsigned grid = flat_grid(places.count, props);
  SK_LAUNCH(bucket_count_kernel, grid, kThreads, 0, stream, places, buckets.ends, buckets.rank);
  if (const int status = launch_scan(buckets.ends, buckets.ends, places.n_rows, buckets.scan, stream)) return status;
  SK_LAUNCH(bucket_fill_kernel, grid, kThreads, 0, stream, places, payload, buckets);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace sparsekern::cuda
