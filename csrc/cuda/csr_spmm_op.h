// The CSR products on CUDA for other bindings that are made of them. Gradients are in Python.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>

namespace sparsekern {

at::Tensor csr_spmm_cuda(const at::Tensor& crow, const at::Tensor& col, const at::Tensor& val, const at::Tensor& b, int64_t rows, int64_t cols,
                         const std::optional<at::Tensor>& row_order, const std::optional<at::Tensor>& bias, c10::string_view algo);
at::Tensor csr_spmm_t_cuda(const at::Tensor& crow_t, const at::Tensor& row_t, const at::Tensor& perm, const at::Tensor& val, const at::Tensor& b,
                           int64_t rows, int64_t cols, c10::string_view algo);

// out[rows, N] = W b + bias for operands that have been checked, with the values val[perm[e]] where `perm` is given. `b` and `out` have one unit
// stride each, so y = x W^T is spmm_into_cuda(..., x.t(), bias, y.t()). Runs on b's device, which must be current, and its current stream.
void spmm_into_cuda(const char* op, const at::Tensor& crow, const at::Tensor& col, const at::Tensor& val, const at::Tensor& b,
                    const std::optional<at::Tensor>& perm, const std::optional<at::Tensor>& row_order, const std::optional<at::Tensor>& bias,
                    const at::Tensor& out, c10::string_view algo = "auto");

// `t` itself where one of its strides is 1 and rows do not overlap, else a row-major copy.
at::Tensor unit_strided_cuda(const at::Tensor& t);

}  // namespace sparsekern
