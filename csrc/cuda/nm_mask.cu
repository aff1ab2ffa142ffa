// Launchers of nm_mask, nm_apply_ and nm_mask_transposable; the kernels are in nm_mask.cuh, nm_tile.cuh and
// nm_transposable.cuh.
#include "cuda/nm_mask.cuh"

#include "cuda/mask_bits.h"
#include "cuda/nm_tile.cuh"
#include "cuda/nm_transposable.cuh"

namespace sparsekern::cuda {
namespace {

constexpr int kTilesPerSm = 16;

int grid_of(int64_t units, int each, const DeviceProps& props, int blocks_per_sm) {
  return static_cast<int>(std::min<int64_t>((units + each - 1) / each, int64_t{props.sms} * blocks_per_sm));
}

template <class Bits>
int launch_flat(const NmShape& s, NmOrder order, void* x, void* out, NmOutput output, const DeviceProps& props, cudaStream_t stream) {
  constexpr int each = kThreads * 8 / sizeof(Bits);
  const auto kernel = &nm_flat_kernel<Bits>;
  SK_LAUNCH(kernel, grid_of((s.numel() + 7) / 8, each, props, kFlatBlocksPerSm), kThreads, 0, stream, static_cast<Bits*>(x),
            static_cast<uint8_t*>(out), s.numel(), s.n, s.m, order, output);
  return static_cast<int>(cudaGetLastError());
}

template <int W, class Bits>
int launch_wide(const NmShape& s, NmOrder order, void* x, void* out, NmOutput output, const DeviceProps& props, cudaStream_t stream) {
  const auto kernel = &nm_wide_kernel<W, Bits>;
  SK_LAUNCH(kernel, grid_of(s.groups() + 1, kTileThreads, props, kTilesPerSm), kTileThreads, 0, stream, static_cast<Bits*>(x),
            static_cast<uint8_t*>(out), s.groups(), s.n, order, output);
  return static_cast<int>(cudaGetLastError());
}

template <class Bits, int W>
int launch_lanes(const NmShape& s, NmOrder order, void* x, void* out, NmOutput output, const DeviceProps& props, cudaStream_t stream) {
  const auto kernel = &nm_lanes_kernel<Bits, W>;
  SK_LAUNCH(kernel, grid_of(s.groups() / nm_lanes(W), kThreads, props, 2 * kLanesBlocksPerSm), kThreads, 0, stream, static_cast<Bits*>(x),
            static_cast<uint8_t*>(out), s, order, output == NmOutput::apply);
  return static_cast<int>(cudaGetLastError());
}

template <int W>
int launch_tile(const NmTile& a, const DeviceProps& props, cudaStream_t stream) {
  const auto kernel = &nm_tile_kernel<W>;
  SK_LAUNCH(kernel, grid_of(a.shape.groups(), kTileGroups<W>, props, kTilesPerSm), kTileThreads, 0, stream, a);
  return static_cast<int>(cudaGetLastError());
}

using Launch = int (*)(const NmShape&, NmOrder, void* x, void* out, NmOutput, const DeviceProps&, cudaStream_t);

template <class Bits>
Launch in_registers(NmPath path, int m) {
  if (path == NmPath::flat) return &launch_flat<Bits>;
  if (path == NmPath::wide) return m == 16 ? &launch_wide<16, Bits> : &launch_wide<32, Bits>;
  return m <= 4 ? &launch_lanes<Bits, 4> : &launch_lanes<Bits, 8>;
}

int launch(const NmShape& s, DType type, void* x, bool use_abs, void* out, NmOutput output, const DeviceProps& props, cudaStream_t stream) {
  const NmOrder order = nm_order(type, use_abs);
  const bool narrow = type != DType::f32;
  if (const NmPath path = nm_path(s); path != NmPath::tile)
    return (narrow ? in_registers<uint16_t>(path, s.m) : in_registers<uint32_t>(path, s.m))(s, order, x, out, output, props, stream);
  const auto kernel = s.m <= 4    ? &launch_tile<4>
                      : s.m <= 8  ? &launch_tile<8>
                      : s.m <= 16 ? &launch_tile<16>
                      : s.m <= 32 ? &launch_tile<32>
                                  : &launch_tile<64>;
  return kernel({x, out, s, order, output, narrow}, props, stream);
}

template <class T>
int launch_transposable(const void* x, uint8_t* mask, int64_t bands, int64_t blocks, const DeviceProps& props, cudaStream_t stream) {
  const auto kernel = &nm_transposable_kernel<T>;
  SK_LAUNCH(kernel, grid_of(bands * blocks, kTileThreads, props, kTilesPerSm), kTileThreads, 0, stream, static_cast<const T*>(x), mask, bands,
            blocks);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace

int launch_nm_mask(const NmShape& s, DType type, const void* x, bool use_abs, void* mask, bool packed, void* workspace, const DeviceProps& props,
                   cudaStream_t stream) {
  void* const from = const_cast<void*>(x);  // only nm_apply_ writes it
  if (!packed) return launch(s, type, from, use_abs, mask, NmOutput::bools, props, stream);
  if (nm_packs_at_once(s)) return launch(s, type, from, use_abs, mask, NmOutput::bits, props, stream);
  if (const int status = launch(s, type, from, use_abs, workspace, NmOutput::bools, props, stream)) return status;
  return launch_pack_mask(static_cast<const uint8_t*>(workspace), static_cast<uint32_t*>(mask), s.numel(), props, stream);
}

int launch_nm_apply(const NmShape& s, DType type, void* x, const DeviceProps& props, cudaStream_t stream) {
  return launch(s, type, x, true, nullptr, NmOutput::apply, props, stream);
}

int launch_nm_mask_transposable(const void* x, uint8_t* mask, int64_t bands, int64_t blocks, DType type, const DeviceProps& props,
                                cudaStream_t stream) {
  const auto kernel = type == DType::f32    ? &launch_transposable<float>
                      : type == DType::bf16 ? &launch_transposable<__nv_bfloat16>
                                            : &launch_transposable<__half>;
  return kernel(x, mask, bands, blocks, props, stream);
}

}  // namespace sparsekern::cuda
