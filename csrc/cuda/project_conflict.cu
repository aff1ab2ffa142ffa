// Launchers of project_conflict_ and project_conflict_sgd_; the kernels are in project_conflict.cuh.
#include "cuda/project_conflict.cuh"

#include <algorithm>

namespace sparsekern::cuda {
namespace {

// fn(table, some, n) for every part of the list that fits one launch; short lists send few bytes.
template <class Fn>
int each_table(ConflictEntry* entries, size_t count, const Fn& fn) {
  return each_launch(entries, count, kLargeConflictTable, [&](ConflictEntry* some, size_t n) {
    const auto with = [&](auto& table, const ListPlan& plan) {
      std::copy_n(some, n, table.entry);
      fn.launch(table, plan);
      return static_cast<int>(cudaGetLastError());
    };
    const ListPlan plan = fn.plan(some, n);
    if (n <= kSmallConflictTable) {
      ConflictTable<kSmallConflictTable> table;
      return with(table, plan);
    }
    ConflictTable<kLargeConflictTable> table;
    return with(table, plan);
  });
}

template <class G>
struct Dots {
  mutable ConflictSums* slots;
  bool invert;
  DeviceProps props;
  cudaStream_t stream;
  ListPlan plan(ConflictEntry* entries, size_t n) const { return plan_pieces(entries, n, props, kDotsBlocksPerSm<G>, kDotPiece); }
  template <int capacity>
  void launch(const ConflictTable<capacity>& table, const ListPlan& plan) const {
    const DotsArgs args = {plan, slots, invert};
    SK_LAUNCH((conflict_dots_kernel<G, capacity>), plan.grid, kThreads, 0, stream, table, args);
    slots += plan.pieces;
  }
};

template <class G>
struct Subtract {
  const float* coefficients;
  bool per_tensor;
  DeviceProps props;
  cudaStream_t stream;
  ListPlan plan(ConflictEntry* entries, size_t n) const { return plan_list(entries, n, props, kSubtractBlocksPerSm); }
  template <int capacity>
  void launch(const ConflictTable<capacity>& table, const ListPlan& plan) const {
    const SubtractArgs args = {plan, coefficients, per_tensor};
    SK_LAUNCH((conflict_subtract_kernel<G, capacity>), plan.grid, kThreads, 0, stream, table, args);
  }
};

template <class P, class G>
struct Step {
  SgdOptions options;
  const float* coefficients;
  DeviceProps props;
  cudaStream_t stream;
  ListPlan plan(ConflictEntry* entries, size_t n) const { return plan_list(entries, n, props, kProjectedBlocksPerSm); }
  template <int capacity>
  void launch(const ConflictTable<capacity>& table, const ListPlan& plan) const {
    const ProjectedArgs args = {plan, options, coefficients};
    SK_LAUNCH((projected_sgd_kernel<P, G, capacity>), plan.grid, kThreads, 0, stream, table, args);
  }
};

template <int capacity>
int judge(const JudgeTable<capacity>& table, size_t ranges, const ConflictSums* slots, const JudgeOptions& options, cudaStream_t stream) {
  int64_t most = 0;
  for (size_t k = 0; k < ranges; ++k) most = std::max(most, table.range[k].count);
  const int threads = most <= 32 ? 32 : kJudgeThreads;  // of the sizes only, so that sums keep their order
  SK_LAUNCH(conflict_judge_kernel<capacity>, static_cast<unsigned>(ranges), threads, 0, stream, table, slots, options);
  return static_cast<int>(cudaGetLastError());
}

template <int capacity>
int judge_some(const ConflictEntry* entries, size_t count, const ConflictSums*& slots, const JudgeOptions& options, cudaStream_t stream) {
  JudgeTable<capacity> table;
  int64_t first = 0;
  for (size_t t = 0; t < count; ++t) {
    const int64_t own = conflict_slots(entries + t, 1);
    table.range[t] = {first, own, entries[t].row};
    first += own;
  }
  const int status = judge(table, count, slots, options, stream);
  slots += first;
  return status;
}

}  // namespace

int launch_conflict_dots(ConflictEntry* entries, size_t count, DType grad, bool invert, ConflictSums* slots, const DeviceProps& props,
                         cudaStream_t stream) {
  if (grad == DType::f32) return each_table(entries, count, Dots<float>{slots, invert, props, stream});
  if (grad == DType::bf16) return each_table(entries, count, Dots<__nv_bfloat16>{slots, invert, props, stream});
  return each_table(entries, count, Dots<__half>{slots, invert, props, stream});
}

int launch_conflict_judge(const ConflictSums* slots, int64_t count, const JudgeOptions& options, cudaStream_t stream) {
  JudgeTable<kSmallJudgeTable> table;
  table.range[0] = {0, count, 0};
  return judge(table, 1, slots, options, stream);
}

int launch_conflict_judge_each(const ConflictEntry* entries, size_t count, const ConflictSums* slots, const JudgeOptions& options,
                               cudaStream_t stream) {
  return each_launch(entries, count, kLargeJudgeTable, [&](const ConflictEntry* some, size_t n) {
    return n <= kSmallJudgeTable ? judge_some<kSmallJudgeTable>(some, n, slots, options, stream)
                                 : judge_some<kLargeJudgeTable>(some, n, slots, options, stream);
  });
}

int launch_conflict_subtract(ConflictEntry* entries, size_t count, DType grad, const float* coefficients, bool per_tensor, const DeviceProps& props,
                             cudaStream_t stream) {
  if (grad == DType::f32) return each_table(entries, count, Subtract<float>{coefficients, per_tensor, props, stream});
  if (grad == DType::bf16) return each_table(entries, count, Subtract<__nv_bfloat16>{coefficients, per_tensor, props, stream});
  return each_table(entries, count, Subtract<__half>{coefficients, per_tensor, props, stream});
}

int launch_projected_sgd(ConflictEntry* entries, size_t count, DType param, DType grad, const SgdOptions& options, const float* coefficients,
                         const DeviceProps& props, cudaStream_t stream) {
  const auto with = [&](auto step) { return each_table(entries, count, step); };
  if (param == DType::f32 && grad == DType::f32) return with(Step<float, float>{options, coefficients, props, stream});
  if (param == DType::f32 && grad == DType::bf16) return with(Step<float, __nv_bfloat16>{options, coefficients, props, stream});
  if (param == DType::f32 && grad == DType::f16) return with(Step<float, __half>{options, coefficients, props, stream});
  if (param == DType::bf16 && grad == DType::bf16) return with(Step<__nv_bfloat16, __nv_bfloat16>{options, coefficients, props, stream});
  if (param == DType::f16 && grad == DType::f16) return with(Step<__half, __half>{options, coefficients, props, stream});
  return static_cast<int>(cudaErrorInvalidValue);
}

}  // namespace sparsekern::cuda
