// What the ops over CSR products share on the host side: checks of dense operands and values, and the product itself.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>

#include "common/float_types.h"
#include "cpu/csr_pattern.h"
#include "cpu/csr_product.h"

namespace sparsekern {

// `given`: `count` numbers on the CPU, of b's type or fp32 beside a half type.
void check_values(const char* op, const char* name, const at::Tensor& given, const at::Tensor& b, int64_t count);

// `b`: [height, N] on the CPU with a supported type.
void check_dense(const char* op, const char* name, const at::Tensor& b, int64_t height);

// `t` itself where one of its strides is 1 and rows do not overlap, else a row-major copy.
at::Tensor with_unit_stride(const at::Tensor& t);

template <class T, class Tensor>
Dense<T> dense_view(const Tensor& t) {
  T* data;
  if constexpr (std::is_const_v<T>) data = static_cast<T*>(t.const_data_ptr());
  else data = static_cast<T*>(t.mutable_data_ptr());
  return {data, t.size(0), t.size(1), t.stride(0), t.stride(1)};
}

// How many threads `work` multiply-adds are worth.
int64_t threads_for(int64_t work);

// out = W b + bias, with the values val[perm[e]] where `perm` is given; b and out have one unit stride each, all has been checked.
void spmm_into(const CsrPattern& w, const at::Tensor& val, const at::Tensor& b, const std::optional<at::Tensor>& bias, const at::Tensor& out,
               const at::Tensor& perm = {});

}  // namespace sparsekern
