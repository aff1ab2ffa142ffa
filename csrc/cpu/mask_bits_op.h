// What other ops' host code uses of mask_bits.cpp.
#pragma once
#include <ATen/core/Tensor.h>

namespace sparsekern {

at::Tensor pack_mask_cpu(const at::Tensor& mask);

}  // namespace sparsekern
