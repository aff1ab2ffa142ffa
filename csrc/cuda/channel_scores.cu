// Launcher of channel_scores; the kernel is in channel_scores.cuh.
#include "cuda/channel_scores.cuh"

namespace sparsekern::cuda {
namespace {

template <class T, int capacity>
int launch_table(ScoreEntry* entries, size_t count, ScoreArgs args, const DeviceProps& props, cudaStream_t stream) {
  args.plan = plan_scores(entries, count, props, kScoreBlocksPerSm);
  ScoreTable<capacity> table;
  std::copy_n(entries, count, table.entry);
  const auto kernel = &channel_scores_kernel<T, capacity>;
  SK_LAUNCH(kernel, args.plan.grid, kThreads, 0, stream, table, args);
  return static_cast<int>(cudaGetLastError());
}

template <class T>
int launch_typed(ScoreEntry* entries, size_t count, const ScoreArgs& args, const DeviceProps& props, cudaStream_t stream) {
  return each_launch(entries, count, kLargeScoreTable, [&](ScoreEntry* some, size_t n) {
    return n <= kSmallScoreTable ? launch_table<T, kSmallScoreTable>(some, n, args, props, stream)
                                 : launch_table<T, kLargeScoreTable>(some, n, args, props, stream);
  });
}

}  // namespace

int launch_channel_scores(ScoreEntry* entries, size_t count, DType type, bool has_b, float beta, float one_minus_beta, const DeviceProps& props,
                          cudaStream_t stream) {
  const ScoreArgs args = {{}, has_b, beta, one_minus_beta};
  if (type == DType::f32) return launch_typed<float>(entries, count, args, props, stream);
  if (type == DType::bf16) return launch_typed<__nv_bfloat16>(entries, count, args, props, stream);
  return launch_typed<__half>(entries, count, args, props, stream);
}

}  // namespace sparsekern::cuda
