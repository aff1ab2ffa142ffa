// Checks, grouping by dtype and registration of project_conflict_ and project_conflict_sgd_ on CUDA. Nothing here waits for the device.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <limits>
#include <optional>

#include "common/conflict_lists.h"
#include "cuda/project_conflict.h"
#include "cuda/stream.h"

namespace sparsekern {
namespace {

using cuda::ConflictEntry;
using cuda::SgdKind;

// Entries that share their dtypes.
struct Group {
  at::ScalarType param, grad;
  std::vector<ConflictEntry> entries;
};

SgdKind kind_of(const MaskView& mask) {
  return mask.kind == MaskKind::bools ? SgdKind::bools : mask.kind == MaskKind::bits ? SgdKind::bits : SgdKind::none;
}

ConflictEntry entry_of(const Pair& x, int64_t numel, int32_t row) {
  return {nullptr, nullptr, x.a, x.b, x.mask.data, numel, 0, row, kind_of(x.mask)};
}

// Groups in the order in which their dtypes first occur. Empty tensors stay: they too have a row of stats.
template <class Lists>
std::vector<Group> groups_of(const Lists& lists, bool per_tensor) {
  std::vector<Group> groups;
  const std::vector<int64_t> numel = lists.numel();
  for (size_t i = 0; i < lists.size(); ++i) {
    const Pair& pair = lists.pairs()[i];
    ConflictEntry entry = entry_of(pair, numel[i], per_tensor ? static_cast<int32_t>(i) : 0);
    at::ScalarType param = pair.type;
    if constexpr (std::is_same_v<Lists, ProjectedSgdLists>) {
      param = lists[i].param_type;
      entry.param = lists[i].param;
      entry.momentum = lists[i].momentum;
    }
    size_t k = 0;
    while (k < groups.size() && !(groups[k].param == param && groups[k].grad == pair.type)) ++k;
    if (k == groups.size()) groups.push_back({param, pair.type, {}});
    groups[k].entries.push_back(entry);
  }
  return groups;
}

// One sum runs over the whole list, so it lives on one device.
void check_devices(const char* op, const char* name, at::TensorList list) {
  for (size_t i = 0; i < list.size(); ++i) {
    cuda::check_cuda(op, name, i, list[i]);
    TORCH_CHECK_VALUE(list[i].device() == list[0].device(), op, ": ", name, "[", i, "]: expected a tensor on ", list[0].device(), " like ", name,
                      "[0], got ", list[i].device(), "; call once per device");
  }
}

struct Call {
  const char* op;
  c10::Device device;
  bool per_tensor, invert;
  double eps;
  std::optional<at::Tensor> stats, found_inf;
};

// Products and decision; then change(group, param dtype, grad dtype, coefficients, props, stream), which returns a status.
template <class Change>
void run(const Call& c, std::vector<Group> groups, size_t tensors, const Change& change) {
  const c10::DeviceGuard guard(c.device);
  const cuda::DeviceProps props = cuda::device_props(c.op, c.device);
  const cudaStream_t stream = cuda::current_stream(c.op, c.device);
  const int64_t rows = c.per_tensor ? static_cast<int64_t>(tensors) : 1;
  check_stats(c.op, c.stats, rows, c.device);
  std::vector<cuda::DType> params, grads;
  int64_t total = 0;
  for (const Group& g : groups) {
    params.push_back(cuda::dtype_of(c.op, "params", g.param));
    grads.push_back(cuda::dtype_of(c.op, "g_i", g.grad));
    total += cuda::conflict_slots(g.entries.data(), g.entries.size());
  }
  const auto bytes = static_cast<int64_t>(cuda::project_conflict_workspace_bytes(total, rows));
  const at::Tensor workspace = at::empty({bytes}, at::TensorOptions().dtype(at::kByte).device(c.device));
  auto* slots = reinterpret_cast<cuda::ConflictSums*>(workspace.mutable_data_ptr<uint8_t>());
  auto* coefficients = reinterpret_cast<float*>(slots + total);
  const cuda::JudgeOptions judge = {c.eps, cuda::device_scalar(c.op, "found_inf", c.found_inf, c.device), coefficients,
                                    c.stats ? c.stats->mutable_data_ptr<float>() : nullptr};
  int64_t first = 0;
  for (size_t k = 0; k < groups.size(); ++k) {
    std::vector<ConflictEntry>& e = groups[k].entries;
    SK_CUDA_CHECK(c.op, cuda::launch_conflict_dots(e.data(), e.size(), grads[k], c.invert, slots + first, props, stream));
    if (c.per_tensor) SK_CUDA_CHECK(c.op, cuda::launch_conflict_judge_each(e.data(), e.size(), slots + first, judge, stream));
    first += cuda::conflict_slots(e.data(), e.size());
  }
  if (!c.per_tensor) SK_CUDA_CHECK(c.op, cuda::launch_conflict_judge(slots, total, judge, stream));
  for (size_t k = groups.size(); k-- > 0;) SK_CUDA_CHECK(c.op, change(groups[k].entries, params[k], grads[k], coefficients, props, stream));
}

void project_conflict_cuda(at::TensorList g_i, at::TensorList g_j, std::optional<at::TensorList> masks, bool per_tensor, double eps,
                           const std::optional<at::Tensor>& stats) {
  constexpr const char* op = "project_conflict_";
  check_devices(op, "g_i", g_i);
  const PairLists lists(op, g_i, g_j, masks);
  if (g_i.empty()) return;
  const bool only_measures = eps == std::numeric_limits<double>::infinity();
  if (only_measures && !stats) return;
  run({op, g_i[0].device(), per_tensor, false, eps, stats, std::nullopt}, groups_of(lists, per_tensor), lists.size(),
      [&](auto& entries, cuda::DType, cuda::DType grad, const float* coefficients, const cuda::DeviceProps& props, cudaStream_t stream) {
        if (only_measures) return 0;
        return cuda::launch_conflict_subtract(entries.data(), entries.size(), grad, coefficients, per_tensor, props, stream);
      });
}

void projected_sgd(at::TensorList params, at::TensorList g_i, at::TensorList g_j, at::TensorList momentum_buffers, at::TensorList masks,
                   const SgdScalars<float>& scalars, double momentum, bool assume_clean, const std::optional<at::Tensor>& lr,
                   const std::optional<at::Tensor>& grad_scale, const std::optional<at::Tensor>& found_inf, bool per_tensor, double eps,
                   const std::optional<at::Tensor>& stats) {
  constexpr const char* op = "project_conflict_sgd_";
  check_devices(op, "params", params);
  const ProjectedSgdLists lists(op, params, g_i, g_j, momentum_buffers, masks, momentum, scalars.invert);
  if (params.empty()) return;
  const c10::Device device = params[0].device();
  const cuda::SgdOptions options = {scalars, assume_clean && scalars.zero_outside, cuda::device_scalar(op, "lr", lr, device),
                                    cuda::device_scalar(op, "grad_scale", grad_scale, device),
                                    cuda::device_scalar(op, "found_inf", found_inf, device)};
  run({op, device, per_tensor, scalars.invert, eps, stats, found_inf}, groups_of(lists, per_tensor), lists.size(),
      [&](auto& entries, cuda::DType param, cuda::DType grad, const float* coefficients, const cuda::DeviceProps& props, cudaStream_t stream) {
        return cuda::launch_projected_sgd(entries.data(), entries.size(), param, grad, options, coefficients, props, stream);
      });
}

void project_conflict_sgd_cuda(at::TensorList params, at::TensorList g_i, at::TensorList g_j, at::TensorList momentum_buffers, at::TensorList masks,
                               double weight_decay, double momentum, double lr, double dampening, bool nesterov, bool maximize, bool is_first_step,
                               c10::string_view outside, bool invert, bool assume_clean, const std::optional<at::Tensor>& grad_scale,
                               const std::optional<at::Tensor>& found_inf, bool per_tensor, double eps, const std::optional<at::Tensor>& stats) {
  const SgdScalars<float> scalars(weight_decay, momentum, lr, dampening, nesterov, maximize, is_first_step,
                                  outside_is_zero("project_conflict_sgd_", outside), invert);
  projected_sgd(params, g_i, g_j, momentum_buffers, masks, scalars, momentum, assume_clean, std::nullopt, grad_scale, found_inf, per_tensor, eps,
                stats);
}

// A learning rate on the CPU is read at once; one on the device never is, so that a captured graph follows a schedule.
void project_conflict_sgd_tensor_lr_cuda(at::TensorList params, at::TensorList g_i, at::TensorList g_j, at::TensorList momentum_buffers,
                                         at::TensorList masks, double weight_decay, double momentum, const at::Tensor& lr, double dampening,
                                         bool nesterov, bool maximize, bool is_first_step, c10::string_view outside, bool invert, bool assume_clean,
                                         const std::optional<at::Tensor>& grad_scale, const std::optional<at::Tensor>& found_inf, bool per_tensor,
                                         double eps, const std::optional<at::Tensor>& stats) {
  const bool on_host = !cuda::is_device(lr);
  const SgdScalars<float> scalars(weight_decay, momentum, on_host ? lr.item().toDouble() : 0, dampening, nesterov, maximize, is_first_step,
                                  outside_is_zero("project_conflict_sgd_", outside), invert);
  projected_sgd(params, g_i, g_j, momentum_buffers, masks, scalars, momentum, assume_clean,
                on_host ? std::nullopt : std::optional<at::Tensor>(lr.to(at::kFloat)), grad_scale, found_inf, per_tensor, eps, stats);
}

}  // namespace

SK_CUDA_LIBRARY(m) {
  m.impl("project_conflict_", &project_conflict_cuda);
  m.impl("project_conflict_sgd_", &project_conflict_sgd_cuda);
  m.impl("project_conflict_sgd_.tensor_lr", &project_conflict_sgd_tensor_lr_cuda);
}

}  // namespace sparsekern
