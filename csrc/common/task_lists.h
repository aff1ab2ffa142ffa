// The gradients of several tasks, checked once and turned into raw pointers; for the CPU and the CUDA bindings.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "common/check.h"
#include "common/pcgrad_row.h"

namespace sparsekern {

// Calls fn(G{}) for a supported dtype.
template <class Fn>
void for_grad_dtype(const char* op, size_t index, at::ScalarType type, const Fn& fn) {
  using at::ScalarType;
  if (type == ScalarType::Float) return fn(float{});
  if (type == ScalarType::BFloat16) return fn(c10::BFloat16{});
  if (type == ScalarType::Half) return fn(c10::Half{});
  if (type == ScalarType::Double) return fn(double{});
  TORCH_CHECK_TYPE(false, op, ": grads[", index, "]: expected float32, bfloat16, float16 or float64, got ", type);
}

// grads[t * tensors + i] is the gradient of task t for parameter i.
struct TaskLists {
  int tasks;
  size_t tensors;
  std::vector<const void*> data;  // [tensors, tasks]
  std::vector<int64_t> numel;
  std::vector<at::ScalarType> type;
  std::vector<at::Tensor> like;  // per parameter: the layout in which all tasks' elements are read

  TaskLists(const char* op, at::TensorList grads, int64_t num_tasks) {
    TORCH_CHECK_VALUE(num_tasks >= 1 && num_tasks <= kMaxTasks, op, ": num_tasks: expected 1 to ", kMaxTasks, ", got ", num_tasks);
    TORCH_CHECK_VALUE(grads.size() % num_tasks == 0, op, ": grads: expected the same number of tensors for each of ", num_tasks,
                      " tasks, one task after the other, got ", grads.size(), " in all");
    tasks = static_cast<int>(num_tasks);
    tensors = grads.size() / num_tasks;
    for (size_t i = 0; i < tensors; ++i) {
      const at::Tensor& first = grads[i];
      for_grad_dtype(op, i, first.scalar_type(), [](auto) {});
      like.push_back(first.is_non_overlapping_and_dense() ? first : first.contiguous());
      for (size_t k = i; k < grads.size(); k += tensors) {
        const at::Tensor& g = grads[k];
        check_like(op, "grads", k, g, first);
        TORCH_CHECK_TYPE(g.scalar_type() == first.scalar_type(), op, ": grads[", k, "]: expected ", first.scalar_type(), " like grads[", i, "], got ",
                         g.scalar_type());
        at::Tensor read = g;
        if (!same_layout(g, like[i])) {
          read = g.new_empty_strided(like[i].sizes(), like[i].strides());
          read.copy_(g);
          kept_.push_back(read);
        }
        data.push_back(read.const_data_ptr());
      }
      numel.push_back(first.numel());
      type.push_back(first.scalar_type());
    }
  }

 private:
  std::vector<at::Tensor> kept_;
};

// int64 [tasks, tasks - 1] beside the gradients, contiguous.
inline at::Tensor checked_order(const char* op, const at::Tensor& order, int64_t tasks, c10::Device device) {
  TORCH_CHECK_TYPE(order.scalar_type() == at::kLong, op, ": order: expected int64, got ", order.scalar_type());
  TORCH_CHECK_VALUE(order.dim() == 2 && order.size(0) == tasks && order.size(1) == tasks - 1, op, ": order: expected shape [", tasks, ", ", tasks - 1,
                    "], got ", order.sizes());
  TORCH_CHECK_VALUE(order.device() == device, op, ": order: expected a tensor on ", device, " like the gradients, got ", order.device(),
                    "; move it with .to()");
  return order.contiguous();
}

inline bool takes_mean(const char* op, c10::string_view reduction) {
  TORCH_CHECK_VALUE(reduction == "sum" || reduction == "mean", op, ": reduction: expected \"sum\" or \"mean\", got \"", reduction, "\"");
  return reduction == "mean";
}

}  // namespace sparsekern
