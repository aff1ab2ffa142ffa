// The checked lists of an SGD step, and the scalars that the CPU reads from tensors (on a GPU the kernel reads them).
#pragma once
#include "common/sgd_lists.h"

namespace sparsekern {

inline bool overflowed(const std::optional<at::Tensor>& found_inf) { return found_inf && found_inf->item().toDouble() != 0; }

inline double inverse_grad_scale(const std::optional<at::Tensor>& grad_scale) { return grad_scale ? 1.0 / grad_scale->item().toDouble() : 1.0; }

}  // namespace sparsekern
