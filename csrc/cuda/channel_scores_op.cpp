// Checks, grouping by dtype and registration of channel_scores on CUDA. Nothing here waits for the device.
#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "common/score_lists.h"
#include "cuda/channel_scores.h"
#include "cuda/stream.h"

namespace sparsekern {
namespace {

// One launch per (device, dtype) that occurs; usually that is one.
std::vector<at::Tensor> channel_scores_cuda(at::TensorList weights, at::TensorList masks_a, std::optional<at::TensorList> masks_b, double beta) {
  constexpr const char* op = kChannelScores;
  constexpr int64_t most = 1 << 30;
  for (size_t i = 0; i < weights.size(); ++i) {
    cuda::check_cuda(op, "weights", i, weights[i]);
    if (weights[i].scalar_type() == at::kDouble) cuda::dtype_of(op, "weights", at::kDouble);
  }
  ScoreLists lists(weights, masks_a, masks_b);
  std::vector<bool> done(lists.size(), false);
  std::vector<cuda::ScoreEntry> entries;
  for (size_t i = 0; i < lists.size(); ++i) {
    if (done[i]) continue;
    const c10::Device device = weights[i].device();
    const c10::DeviceGuard guard(device);
    entries.clear();
    for (size_t k = i; k < lists.size(); ++k) {
      const ScoreView& x = lists[k];
      if (done[k] || x.type != lists[i].type || weights[k].device() != device) continue;
      done[k] = true;
      TORCH_CHECK_VALUE(x.rows <= most && x.row_size <= most, op, ": weights[", k, "]: expected at most 2^30 channels and elements of each, got ",
                        x.rows, " and ", x.row_size);
      if (x.row_size == 0) lists.out[k].zero_();
      else if (x.rows != 0)
        entries.push_back(
            {x.weight, x.a.data, x.b.data, static_cast<float*>(x.out), x.row_size, static_cast<int32_t>(x.rows), 0, x.a.kind, x.b.kind});
    }
    if (entries.empty()) continue;
    SK_CUDA_CHECK(op, cuda::launch_channel_scores(entries.data(), entries.size(), cuda::dtype_of(op, "weights", lists[i].type), lists.has_b,
                                                  static_cast<float>(beta), static_cast<float>(1 - beta), cuda::device_props(op, device),
                                                  cuda::current_stream(op, device)));
  }
  return std::move(lists.out);
}

}  // namespace

SK_CUDA_LIBRARY(m) { m.impl("channel_scores", &channel_scores_cuda); }

}  // namespace sparsekern
