// Launchers of sp24_compress and sp24_decompress; the kernels are in sp24.cuh.
#include "cuda/sp24.cuh"

namespace sparsekern::cuda {
namespace {

// Blocks of eight tiles, `high` of them down.
int64_t sp24_grid(int64_t rows, int64_t cols, int high) {
  const int64_t wide = kSp24Warps / high;
  return (rows / kSp24Rows + high - 1) / high * ((cols / kSp24Cols + wide - 1) / wide);
}

template <Sp24Mode mode>
int launch(const Sp24Pack& args, int high, cudaStream_t stream) {
  const int64_t grid = sp24_grid(args.rows, args.cols, high);
  if (grid > INT32_MAX) return static_cast<int>(cudaErrorInvalidValue);
  const auto kernel = &sp24_compress_kernel<mode>;
  SK_LAUNCH(kernel, static_cast<unsigned>(grid), kThreads, 0, stream, args);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace

int launch_sp24_compress(const Sp24Pack& args, const DeviceProps&, cudaStream_t stream) {
  const bool masked = args.mask.kind != MaskKind::none;
  if (!args.vt) return masked ? launch<Sp24Mode::masked_rows>(args, 1, stream) : launch<Sp24Mode::rows>(args, 1, stream);
  return masked ? launch<Sp24Mode::masked_both>(args, 4, stream) : launch<Sp24Mode::searched_both>(args, 4, stream);
}

int launch_sp24_decompress(const Sp24Unpack& args, const DeviceProps&, cudaStream_t stream) {
  const int64_t grid = sp24_grid(args.rows, args.cols, 1);
  if (grid > INT32_MAX) return static_cast<int>(cudaErrorInvalidValue);
  SK_LAUNCH(sp24_decompress_kernel, static_cast<unsigned>(grid), kThreads, 0, stream, args);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace sparsekern::cuda
