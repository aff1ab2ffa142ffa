// What other ops' host code uses of nm_mask.cpp.
#pragma once
#include <ATen/core/Tensor.h>

namespace sparsekern {

at::Tensor nm_mask_transposable_cpu(const at::Tensor& x, int64_t n, int64_t m);

}  // namespace sparsekern
