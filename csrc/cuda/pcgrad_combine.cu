// Launchers of task_gram and pcgrad_combine; the kernels are in pcgrad_combine.cuh.
#include "cuda/pcgrad_combine.cuh"

#include <algorithm>

namespace sparsekern::cuda {
namespace {

// launch(table, entries, n) for every part of the list whose pointers fit one launch; short lists send few bytes.
template <class Launch>
int each_table(TaskEntry* entries, size_t count, const void* const* data, int tasks, const Launch& launch) {
  const size_t capacity = std::min<size_t>(kLargeEntries, kLargePointers / tasks);
  return each_launch(entries, count, capacity, [&](TaskEntry* some, size_t n) {
    const auto with = [&](auto& table) {
      for (size_t t = 0; t < n; ++t) some[t].row = static_cast<int32_t>(t);
      std::copy_n(data + (some - entries) * tasks, n * tasks, table.data);
      launch(table, some, n);  // lays out the entries
      return static_cast<int>(cudaGetLastError());
    };
    if (n <= kSmallEntries && n * tasks <= kSmallPointers) {
      TaskTable<kSmallEntries, kSmallPointers> table;
      return with(table);
    }
    TaskTable<kLargeEntries, kLargePointers> table;
    return with(table);
  });
}

template <class G, int T>
int launch_gram(TaskEntry* entries, size_t count, const void* const* data, GramArgs args, const DeviceProps& props, cudaStream_t stream) {
  const auto launch = [&](auto& table, TaskEntry* some, size_t n) {
    args.plan = plan_pieces(some, n, props, kGramBlocksPerSm<G, T>, kGramPiece);
    std::copy_n(some, n, table.entry);
    const auto with = [&](auto kernel) { SK_LAUNCH(kernel, args.plan.grid, kThreads, 0, stream, table, args); };
    if constexpr (sizeof(table.entry) / sizeof(TaskEntry) == kSmallEntries) with(&task_gram_kernel<G, T, kSmallEntries, kSmallPointers>);
    else with(&task_gram_kernel<G, T, kLargeEntries, kLargePointers>);
    args.first += args.plan.pieces;
  };
  return each_table(entries, count, data, args.tasks, launch);
}

template <class G>
int launch_gram_typed(TaskEntry* entries, size_t count, const void* const* data, const GramArgs& args, const DeviceProps& props,
                      cudaStream_t stream) {
  if (args.tasks <= 2) return launch_gram<G, 2>(entries, count, data, args, props, stream);
  if (args.tasks <= 4) return launch_gram<G, 4>(entries, count, data, args, props, stream);
  return launch_gram<G, 8>(entries, count, data, args, props, stream);
}

template <class G>
int launch_combine(TaskEntry* entries, size_t count, const void* const* data, int tasks, const float* weights, const DeviceProps& props,
                   cudaStream_t stream) {
  const auto launch = [&](auto& table, TaskEntry* some, size_t n) {
    const CombineArgs args = {plan_list(some, n, props, kCombineBlocksPerSm), weights, tasks};
    std::copy_n(some, n, table.entry);
    const auto with = [&](auto kernel) { SK_LAUNCH(kernel, args.plan.grid, kThreads, 0, stream, table, args); };
    if constexpr (sizeof(table.entry) / sizeof(TaskEntry) == kSmallEntries) with(&pcgrad_combine_kernel<G, kSmallEntries, kSmallPointers>);
    else with(&pcgrad_combine_kernel<G, kLargeEntries, kLargePointers>);
  };
  return each_table(entries, count, data, tasks, launch);
}

}  // namespace

int launch_task_gram(TaskEntry* entries, size_t count, const void* const* data, int tasks, const GramTile& tile, DType dtype, float* slots,
                     int64_t first, int64_t total, const DeviceProps& props, cudaStream_t stream) {
  const GramArgs args = {{}, tile, slots, first, total, tasks};
  if (dtype == DType::f32) return launch_gram_typed<float>(entries, count, data, args, props, stream);
  if (dtype == DType::bf16) return launch_gram_typed<__nv_bfloat16>(entries, count, data, args, props, stream);
  return launch_gram_typed<__half>(entries, count, data, args, props, stream);
}

int launch_gram_sum(const float* slots, int64_t total, int tasks, const GramTile& tile, double* gram, float* out, cudaStream_t stream) {
  const auto with = [&](auto kernel, int pairs) {
    SK_LAUNCH(kernel, pairs, kGramSumThreads, 0, stream, slots, total, tasks, tile, gram, out);
    return static_cast<int>(cudaGetLastError());
  };
  return tasks <= 2 ? with(&gram_sum_kernel<2>, 3) : tasks <= 4 ? with(&gram_sum_kernel<4>, 10) : with(&gram_sum_kernel<8>, kGramPairs);
}

int launch_pcgrad_weights(const double* gram, const int64_t* order, int tasks, bool mean, float* weights, cudaStream_t stream) {
  SK_LAUNCH(pcgrad_weights_kernel<kMaxTasks>, 1, kMaxTasks, 0, stream, gram, order, tasks, mean, weights);
  return static_cast<int>(cudaGetLastError());
}

int launch_pcgrad_combine(TaskEntry* entries, size_t count, const void* const* data, int tasks, DType dtype, const float* weights,
                          const DeviceProps& props, cudaStream_t stream) {
  if (dtype == DType::f32) return launch_combine<float>(entries, count, data, tasks, weights, props, stream);
  if (dtype == DType::bf16) return launch_combine<__nv_bfloat16>(entries, count, data, tasks, weights, props, stream);
  return launch_combine<__half>(entries, count, data, tasks, weights, props, stream);
}

}  // namespace sparsekern::cuda
