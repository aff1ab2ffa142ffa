// A sparse pattern as a CUDA binding gets it: checked without a read-back, and kept alive; and scratch memory.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "common/csr_edit_checks.h"
#include "cuda/csr_rows.h"
#include "cuda/stream.h"

namespace sparsekern::cuda {

struct CsrTensors {
  at::Tensor crow, col;
  CsrView view;
  CsrTensors(const char* op, const at::Tensor& given_crow, const at::Tensor& given_col, int64_t rows, int64_t cols) {
    check_cuda(op, "crow", given_crow);
    check_pattern_shape(op, given_crow, given_col, rows, cols, given_crow.device());
    crow = given_crow.contiguous(), col = given_col.contiguous();
    view = {crow.const_data_ptr(), col.const_data_ptr<int32_t>(), rows, cols, col.numel(), crow.scalar_type() == at::kLong};
  }
};

inline at::Tensor scratch(size_t bytes, c10::Device device) {
  return at::empty({static_cast<int64_t>(bytes)}, at::TensorOptions().dtype(at::kByte).device(device));
}

}  // namespace sparsekern::cuda
