// What the bindings of products of a sparse matrix and a dense one share: tensors as arguments, scratch memory, and the library's dense product in
// place of the sparse one.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>

#include <optional>

#include "cuda/csr_spmm.h"
#include "cuda/stream.h"

namespace sparsekern::cuda {

inline SpmmType spmm_type_of(at::ScalarType type) {
  return type == at::kFloat ? SpmmType::f32 : type == at::kBFloat16 ? SpmmType::bf16 : type == at::kHalf ? SpmmType::f16 : SpmmType::f64;
}

inline at::Tensor scratch_beside(const at::Tensor& b, size_t bytes) { return at::empty({static_cast<int64_t>(bytes)}, b.options().dtype(at::kByte)); }

// b and out have one unit stride each; values and bias are contiguous.
inline void set_operands(SpmmArgs& a, const at::Tensor& values, const at::Tensor& b, const at::Tensor& bias, const at::Tensor& out) {
  a.val = values.const_data_ptr();
  a.bias = bias.defined() ? bias.const_data_ptr() : nullptr;
  a.b = b.const_data_ptr();
  a.out = out.mutable_data_ptr();
  a.rows = out.size(0), a.cols = b.size(0), a.n = out.size(1), a.nnz = values.numel();
  a.b_row = b.stride(0), a.b_col = a.n == 1 ? 1 : b.stride(1);
  a.out_row = out.stride(0), a.out_col = a.n == 1 ? 1 : out.stride(1);
  a.type = spmm_type_of(b.scalar_type()), a.val_type = spmm_type_of(values.scalar_type());
  a.bias_type = bias.defined() ? spmm_type_of(bias.scalar_type()) : a.type;
}

// float32 values, or a float32 bias, may be too large for float16.
inline bool may_densify(const SpmmArgs& a) { return (a.val_type == a.type && a.bias_type == a.type) || a.type == SpmmType::bf16; }

// out = W b + bias. fill(dense, width) writes W as [rows, width], width a multiple of 16 bytes.
template <class Fill>
void dense_product(const at::Tensor& b, const std::optional<at::Tensor>& bias, const at::Tensor& out, const Fill& fill) {
  const int64_t cols = b.size(0), group = 16 / b.element_size(), width = (cols + group - 1) / group * group;
  const at::Tensor dense = at::empty({out.size(0), width}, b.options());
  fill(dense.mutable_data_ptr(), width);
  const at::Tensor w = dense.narrow(1, 0, cols);
  // Written row-major: as it is, or as its transpose, where the bias runs along the rows.
  at::Tensor target = out.stride(1) == 1 ? out : out.t();
  const at::Tensor left = out.stride(1) == 1 ? w : b.t(), right = out.stride(1) == 1 ? b : w.t();
  if (!bias) {
    at::mm_out(target, left, right);
    return;
  }
  const at::Tensor offset = bias->to(b.scalar_type());
  at::addmm_out(target, out.stride(1) == 1 ? offset.unsqueeze(1) : offset, left, right);
}

}  // namespace sparsekern::cuda
