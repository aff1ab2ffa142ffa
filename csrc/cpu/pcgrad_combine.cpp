// Checks, pieces, the projections and registration of task_gram and pcgrad_combine; the kernels are in pcgrad_combine.h.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "common/task_lists.h"
#include "cpu/pieces.h"

#define SK_KERNEL_FILE "cpu/pcgrad_combine.h"
#include "cpu/for_each_isa.h"

namespace sparsekern {
namespace {

// All products, [tasks, tasks]; slot by slot, so that the number of threads does not show.
std::vector<double> gram(const char* op, const TaskLists& lists) {
  const int tasks = lists.tasks;
  const int64_t cells = int64_t{tasks} * tasks;
  const Pieces pieces(lists.numel);
  std::vector<double> slots(pieces.count() * cells, 0), sums(cells, 0);
  pieces.each([&](int64_t piece, int64_t t, int64_t begin, int64_t end) {
    for_grad_dtype(op, t, lists.type[t],
                   [&](auto g) { SK_PICK(gram_piece<decltype(g)>)(lists.data.data() + t * tasks, tasks, begin, end, slots.data() + piece * cells); });
  });
  for (int64_t piece = 0; piece < pieces.count(); ++piece)
    for (int64_t k = 0; k < cells; ++k) sums[k] += slots[piece * cells + k];
  for (int i = 0; i < tasks; ++i)
    for (int j = 0; j < i; ++j) sums[i * tasks + j] = sums[j * tasks + i];
  return sums;
}

at::Tensor task_gram_cpu(at::TensorList grads, int64_t num_tasks) {
  constexpr const char* op = "task_gram";
  const TaskLists lists(op, grads, num_tasks);
  const bool wide = std::find(lists.type.begin(), lists.type.end(), at::kDouble) != lists.type.end();
  at::Tensor out = at::empty({num_tasks, num_tasks}, wide ? at::kDouble : at::kFloat);
  const std::vector<double> sums = gram(op, lists);
  if (wide) std::copy(sums.begin(), sums.end(), out.mutable_data_ptr<double>());
  else std::transform(sums.begin(), sums.end(), out.mutable_data_ptr<float>(), [](double x) { return static_cast<float>(x); });
  return out;
}

std::vector<at::Tensor> pcgrad_combine_cpu(at::TensorList grads, int64_t num_tasks, const at::Tensor& order, c10::string_view reduction) {
  constexpr const char* op = "pcgrad_combine";
  const TaskLists lists(op, grads, num_tasks);
  const at::Tensor visits = checked_order(op, order, num_tasks, at::kCPU);
  const bool mean = takes_mean(op, reduction);
  const int tasks = lists.tasks;
  const auto* visit = visits.const_data_ptr<int64_t>();
  for (int i = 0; i < tasks; ++i)
    for (int s = 0; s < tasks - 1; ++s) {
      const int64_t j = visit[i * (tasks - 1) + s];
      TORCH_CHECK_VALUE(j >= 0 && j < tasks && j != i, op, ": order: expected row ", i, " to name the other tasks of ", tasks, ", got ", j);
    }

  const std::vector<double> products = gram(op, lists);
  std::vector<double> row(tasks), weights(tasks, 0);
  for (int i = 0; i < tasks; ++i) {
    project_row(products.data(), tasks, visit + i * (tasks - 1), i, row.data(), 1);
    for (int k = 0; k < tasks; ++k) weights[k] += row[k];
  }
  if (mean)
    for (double& w : weights) w /= tasks;

  std::vector<at::Tensor> out;
  std::vector<void*> to;
  for (const at::Tensor& like : lists.like) {
    out.push_back(at::empty_like(like));
    to.push_back(out.back().mutable_data_ptr());
  }
  Pieces(lists.numel).each([&](int64_t, int64_t t, int64_t begin, int64_t end) {
    for_grad_dtype(op, t, lists.type[t], [&](auto g) {
      using G = decltype(g);
      SK_PICK(combine_piece<G>)(lists.data.data() + t * tasks, weights.data(), tasks, begin, end, static_cast<G*>(to[t]));
    });
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("task_gram", &task_gram_cpu);
  m.impl("pcgrad_combine", &pcgrad_combine_cpu);
}

}  // namespace sparsekern
