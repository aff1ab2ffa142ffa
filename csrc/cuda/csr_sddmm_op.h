// The sampled product on CUDA for other bindings that are made of it. Gradients are in Python.
#pragma once
#include <ATen/core/Tensor.h>

namespace sparsekern {

// out[e] = <a[row(e), :], b[col(e), :]> for operands that have been checked, in out's dtype: a's, or fp32 beside a half type. Runs on
// a's device, which must be current, and its current stream.
void sddmm_into_cuda(const char* op, const at::Tensor& crow, const at::Tensor& col, const at::Tensor& a, const at::Tensor& b, const at::Tensor& out,
                     c10::string_view algo = "auto");

}  // namespace sparsekern
