// Checks, grouping by dtype and registration of task_gram and pcgrad_combine on CUDA. Nothing here waits for the device.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <vector>

#include "common/task_lists.h"
#include "cuda/pcgrad_combine.h"
#include "cuda/stream.h"

namespace sparsekern {
namespace {

// Parameters that share a dtype, and their gradients' addresses, [parameters, tasks].
struct Group {
  at::ScalarType type;
  cuda::DType dtype;
  std::vector<cuda::TaskEntry> entries;
  std::vector<const void*> data;
};

std::vector<Group> groups_of(const char* op, const TaskLists& lists, const std::vector<at::Tensor>& out) {
  std::vector<Group> groups;
  for (size_t i = 0; i < lists.tensors; ++i) {
    size_t k = 0;
    while (k < groups.size() && groups[k].type != lists.type[i]) ++k;
    if (k == groups.size()) groups.push_back({lists.type[i], cuda::dtype_of(op, "grads", lists.type[i]), {}, {}});
    groups[k].entries.push_back({out.empty() ? nullptr : out[i].mutable_data_ptr(), lists.numel[i], 0, 0});
    groups[k].data.insert(groups[k].data.end(), lists.data.begin() + i * lists.tasks, lists.data.begin() + (i + 1) * lists.tasks);
  }
  return groups;
}

// One sum runs over the whole list, so it lives on one device.
void check_devices(const char* op, at::TensorList grads) {
  for (size_t k = 0; k < grads.size(); ++k) {
    cuda::check_cuda(op, "grads", k, grads[k]);
    TORCH_CHECK_VALUE(grads[k].device() == grads[0].device(), op, ": grads[", k, "]: expected a tensor on ", grads[0].device(),
                      " like grads[0], got ", grads[k].device(), "; move it with .to()");
  }
}

// A device's props and current stream, and scratch memory that lives as long as this does.
struct Scratch {
  cuda::DeviceProps props;
  cudaStream_t stream;
  int64_t total = 0;
  at::Tensor memory;
  Scratch(const char* op, c10::Device device, int tasks, const std::vector<Group>& groups)
      : props(cuda::device_props(op, device)), stream(cuda::current_stream(op, device)) {
    for (const Group& g : groups) total += cuda::gram_slots(g.entries.data(), g.entries.size());
    const auto bytes = static_cast<int64_t>(cuda::pcgrad_workspace_bytes(tasks, total));
    memory = at::empty({bytes}, at::TensorOptions().dtype(at::kByte).device(device));
  }
  cuda::PcgradWorkspace parts(int tasks) const { return {memory.mutable_data_ptr(), tasks}; }
};

void products(const char* op, int tasks, std::vector<Group>& groups, const Scratch& s, float* out) {
  const cuda::PcgradWorkspace w = s.parts(tasks);
  for (int k = 0; k < cuda::gram_tiles(tasks); ++k) {
    const cuda::GramTile tile = cuda::gram_tile(tasks, k);
    int64_t first = 0;
    for (Group& g : groups) {
      SK_CUDA_CHECK(op, cuda::launch_task_gram(g.entries.data(), g.entries.size(), g.data.data(), tasks, tile, g.dtype, w.slots, first, s.total,
                                               s.props, s.stream));
      first += cuda::gram_slots(g.entries.data(), g.entries.size());
    }
    SK_CUDA_CHECK(op, cuda::launch_gram_sum(w.slots, s.total, tasks, tile, w.gram, out, s.stream));
  }
}

at::Tensor task_gram_cuda(at::TensorList grads, int64_t num_tasks) {
  constexpr const char* op = "task_gram";
  check_devices(op, grads);
  const TaskLists lists(op, grads, num_tasks);
  TORCH_CHECK_VALUE(!grads.empty(), op, ": grads: expected at least one tensor per task, got an empty list");
  const c10::DeviceGuard guard(grads[0].device());
  std::vector<Group> groups = groups_of(op, lists, {});
  const Scratch scratch(op, grads[0].device(), lists.tasks, groups);
  at::Tensor out = at::empty({num_tasks, num_tasks}, at::TensorOptions().dtype(at::kFloat).device(grads[0].device()));
  products(op, lists.tasks, groups, scratch, out.mutable_data_ptr<float>());
  return out;
}

std::vector<at::Tensor> pcgrad_combine_cuda(at::TensorList grads, int64_t num_tasks, const at::Tensor& order, c10::string_view reduction) {
  constexpr const char* op = "pcgrad_combine";
  check_devices(op, grads);
  const TaskLists lists(op, grads, num_tasks);
  if (grads.empty()) return {};
  const int tasks = lists.tasks;
  const c10::DeviceGuard guard(grads[0].device());
  const at::Tensor visits = checked_order(op, order, num_tasks, grads[0].device());
  const bool mean = takes_mean(op, reduction);
  std::vector<at::Tensor> out;
  for (const at::Tensor& like : lists.like) out.push_back(at::empty_like(like));
  std::vector<Group> groups = groups_of(op, lists, out);
  const Scratch scratch(op, grads[0].device(), tasks, groups);
  const cuda::PcgradWorkspace w = scratch.parts(tasks);
  products(op, tasks, groups, scratch, nullptr);
  SK_CUDA_CHECK(op, cuda::launch_pcgrad_weights(w.gram, visits.const_data_ptr<int64_t>(), tasks, mean, w.weights, scratch.stream));
  for (Group& g : groups)
    SK_CUDA_CHECK(
        op, cuda::launch_pcgrad_combine(g.entries.data(), g.entries.size(), g.data.data(), tasks, g.dtype, w.weights, scratch.props, scratch.stream));
  return out;
}

}  // namespace

SK_CUDA_LIBRARY(m) {
  m.impl("task_gram", &task_gram_cuda);
  m.impl("pcgrad_combine", &pcgrad_combine_cuda);
}

}  // namespace sparsekern
