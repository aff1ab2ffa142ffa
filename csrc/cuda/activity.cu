// Plan and launcher of activity; the kernels are in activity.cuh.
#include "cuda/activity.cuh"

#include <climits>

namespace sparsekern::cuda {
namespace {

template <class T>
void launch_partials(const ActivityArgs& args, const ActivityPlan& plan, float* partials, cudaStream_t stream) {
  const auto kernel = plan.rows     ? args.window ? &activity_rows_kernel<T, kWindowTaps> : &activity_rows_kernel<T, 1>
                      : args.window ? &activity_lines_kernel<T, kWindowTaps>
                                    : &activity_lines_kernel<T, 1>;
  SK_LAUNCH(kernel, static_cast<unsigned>(plan.tiles), kThreads, 0, stream, args, plan, partials);
}

}  // namespace

ActivityPlan plan_activity(const ActivityArgs& args, DType type) {
  const int group = type == DType::f32 ? 4 : 8;
  ActivityPlan plan = {};
  plan.rows = args.feature == 1 && args.features > 1;
  plan.across = 1;
  while (plan.rows && plan.across < 32 && plan.across * group < args.features) plan.across *= 2;
  const int width = plan.rows ? plan.across * group : kThreads / 32;  // features of a block
  const int down = plan.rows ? kThreads / plan.across : 64;           // positions of a step
  const int64_t blocks = (args.features + width - 1) / width;
  // Sixteen steps, or four where that leaves most of a GPU idle.
  for (const int steps : {16, 4}) {
    plan.chunk = down * steps;
    plan.chunks = (args.positions + plan.chunk - 1) / plan.chunk;
    plan.tiles = plan.chunks * blocks;
    if (plan.tiles >= 512) break;
  }
  return plan;
}

size_t activity_workspace_bytes(const ActivityArgs& args, DType type) {
  const int64_t chunks = plan_activity(args, type).chunks;
  return chunks == 1 ? 0 : sizeof(float) * chunks * args.features * args.taps;
}

int launch_activity(const ActivityArgs& args, DType type, float* out, void* workspace, cudaStream_t stream) {
  const ActivityPlan plan = plan_activity(args, type);
  const int64_t outputs = int64_t{args.features} * args.taps;
  if (plan.tiles > INT_MAX) return static_cast<int>(cudaErrorInvalidValue);
  float* partials = plan.chunks == 1 ? out : static_cast<float*>(workspace);
  if (type == DType::f32) launch_partials<float>(args, plan, partials, stream);
  else if (type == DType::bf16) launch_partials<__nv_bfloat16>(args, plan, partials, stream);
  else launch_partials<__half>(args, plan, partials, stream);
  if (const int status = static_cast<int>(cudaGetLastError()); status != 0 || plan.chunks == 1) return status;
  SK_LAUNCH(activity_sum_kernel, static_cast<unsigned>((outputs + 31) / 32), kThreads, 0, stream, partials, out, outputs, plan.chunks);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace sparsekern::cuda
