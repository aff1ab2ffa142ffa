// Launchers of masked_sgd_ and packed_sgd_; the kernels are in masked_sgd.cuh.
#include "cuda/masked_sgd.cuh"

#include <algorithm>

namespace sparsekern::cuda {
namespace {

enum class Op { masked, packed };

template <Op op, class P, class G, int capacity>
int launch_table(SgdEntry* entries, size_t count, const SgdOptions& options, const DeviceProps& props, cudaStream_t stream) {
  constexpr int blocks = op == Op::masked ? kMaskedBlocksPerSm<P> : kPackedBlocksPerSm<P>;
  const SgdArgs args = {plan_list(entries, count, props, blocks), options};
  SgdTable<capacity> table;
  std::copy_n(entries, count, table.entry);
  const auto kernel = op == Op::masked ? &masked_sgd_kernel<P, G, capacity> : &packed_sgd_kernel<P, G, capacity>;
  SK_LAUNCH(kernel, args.plan.grid, kThreads, 0, stream, table, args);
  return static_cast<int>(cudaGetLastError());
}

template <Op op, class P, class G>
int launch_typed(SgdEntry* entries, size_t count, const SgdOptions& options, const DeviceProps& props, cudaStream_t stream) {
  return each_launch(entries, count, kLargeTable, [&](SgdEntry* some, size_t n) {
    return n <= kSmallTable ? launch_table<op, P, G, kSmallTable>(some, n, options, props, stream)
                            : launch_table<op, P, G, kLargeTable>(some, n, options, props, stream);
  });
}

template <Op op>
int launch(SgdEntry* entries, size_t count, DType param, DType grad, const SgdOptions& options, const DeviceProps& props, cudaStream_t stream) {
  if (param == DType::f32 && grad == DType::f32) return launch_typed<op, float, float>(entries, count, options, props, stream);
  if (param == DType::f32 && grad == DType::bf16) return launch_typed<op, float, __nv_bfloat16>(entries, count, options, props, stream);
  if (param == DType::f32 && grad == DType::f16) return launch_typed<op, float, __half>(entries, count, options, props, stream);
  if (param == DType::bf16 && grad == DType::bf16) return launch_typed<op, __nv_bfloat16, __nv_bfloat16>(entries, count, options, props, stream);
  if (param == DType::f16 && grad == DType::f16) return launch_typed<op, __half, __half>(entries, count, options, props, stream);
  return static_cast<int>(cudaErrorInvalidValue);
}

}  // namespace

int launch_masked_sgd(SgdEntry* entries, size_t count, DType param, DType grad, const SgdOptions& options, const DeviceProps& props,
                      cudaStream_t stream) {
  return launch<Op::masked>(entries, count, param, grad, options, props, stream);
}

int launch_packed_sgd(SgdEntry* entries, size_t count, DType param, DType grad, const SgdOptions& options, const DeviceProps& props,
                      cudaStream_t stream) {
  return launch<Op::packed>(entries, count, param, grad, options, props, stream);
}

}  // namespace sparsekern::cuda
