// Launcher of nm_pack; the kernel is in nm_pack.cuh.
#include "cuda/nm_pack.cuh"

#include <algorithm>

namespace sparsekern::cuda {
namespace {

constexpr int kPackTilesPerSm = 16;

template <int W>
int launch_pack(const NmPackArgs& args, DType type, const DeviceProps& props, cudaStream_t stream) {
  const auto kernel = &nm_pack_kernel<W>;
  const NmPack p = {args, (args.groups + kTileGroups<W> - 1) / kTileGroups<W>, type};
  const auto grid = static_cast<int>(std::min<int64_t>(args.bands * p.tiles_per_band, int64_t{props.sms} * kPackTilesPerSm));
  SK_LAUNCH(kernel, grid, kTileThreads, 0, stream, p);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace

int launch_nm_pack(const NmPackArgs& args, DType type, const DeviceProps& props, cudaStream_t stream) {
  const auto kernel = args.m <= 4    ? &launch_pack<4>
                      : args.m <= 8  ? &launch_pack<8>
                      : args.m <= 16 ? &launch_pack<16>
                      : args.m <= 32 ? &launch_pack<32>
                                     : &launch_pack<64>;
  return kernel(args, type, props, stream);
}

}  // namespace sparsekern::cuda
