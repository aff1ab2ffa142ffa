// Launcher of masked_weight; the kernel is in masked_weight.cuh.
#include "cuda/masked_weight.cuh"

#include <algorithm>

namespace sparsekern::cuda {
namespace {

template <class F, class O, int capacity>
int launch_table(WeightEntry* entries, size_t count, const DeviceProps& props, cudaStream_t stream) {
  const ListPlan plan = plan_list(entries, count, props, kWeightBlocksPerSm);
  WeightTable<capacity> table;
  std::copy_n(entries, count, table.entry);
  const auto kernel = &masked_weight_kernel<F, O, capacity>;
  SK_LAUNCH(kernel, plan.grid, kThreads, 0, stream, table, plan);
  return static_cast<int>(cudaGetLastError());
}

template <class F, class O>
int launch_typed(WeightEntry* entries, size_t count, const DeviceProps& props, cudaStream_t stream) {
  return each_launch(entries, count, kLargeWeightTable, [&](WeightEntry* some, size_t n) {
    return n <= kSmallWeightTable ? launch_table<F, O, kSmallWeightTable>(some, n, props, stream)
                                  : launch_table<F, O, kLargeWeightTable>(some, n, props, stream);
  });
}

}  // namespace

int launch_masked_weight(WeightEntry* entries, size_t count, DType from, DType to, const DeviceProps& props, cudaStream_t stream) {
  using bf16 = __nv_bfloat16;
  using f16 = __half;
  if (from == to && from == DType::f32) return launch_typed<uint32_t, uint32_t>(entries, count, props, stream);
  if (from == to) return launch_typed<uint16_t, uint16_t>(entries, count, props, stream);
  if (from == DType::f32 && to == DType::bf16) return launch_typed<float, bf16>(entries, count, props, stream);
  if (from == DType::f32) return launch_typed<float, f16>(entries, count, props, stream);
  if (from == DType::bf16 && to == DType::f32) return launch_typed<bf16, float>(entries, count, props, stream);
  if (from == DType::bf16) return launch_typed<bf16, f16>(entries, count, props, stream);
  if (to == DType::f32) return launch_typed<f16, float>(entries, count, props, stream);
  return launch_typed<f16, bf16>(entries, count, props, stream);
}

}  // namespace sparsekern::cuda
