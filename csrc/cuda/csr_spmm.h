// What csr_spmm and csr_spmm_t ask of the GPU: launchers over raw pointers, free of torch.
#pragma once
#include "cuda/launch.h"

namespace sparsekern::cuda {

enum class SpmmType : int8_t { f32, bf16, f16, f64 };
inline int bytes_of(SpmmType type) { return type == SpmmType::f32 ? 4 : type == SpmmType::f64 ? 8 : 2; }

// out[rows, n] = W b + bias. Element (i, j) of a dense operand is data[i * row + j * col]; one of the strides is 1.
struct SpmmArgs {
  const void* crow;          // [rows + 1] int32, or int64 if wide_crow
  const int32_t* col;        // [nnz]
  const void* val;           // [nnz] of val_type
  const int32_t* perm;       // null, or the values are val[perm[e]]
  const int32_t* row_order;  // null, or the order in which rows are taken up
  const void* bias;          // null, or [rows] of bias_type
  const void* b;
  void* out;
  // Null, or `guards` flags: where all are 0 nothing happens.
  const int32_t* guard;
  int64_t rows, cols, n, nnz;
  int64_t b_row, b_col, out_row, out_col;
  int32_t guards;
  SpmmType type, val_type, bias_type;  // of b and out; type or f32
  bool wide_crow;
};

// scalar: a few lanes per row gather rows of b from the L2 cache. Returns a cudaError_t; the workspace is 16-byte aligned.
size_t spmm_scalar_workspace_bytes(const SpmmArgs& args);
int launch_spmm_scalar(const SpmmArgs& args, void* workspace, const DeviceProps& props, cudaStream_t stream);

}  // namespace sparsekern::cuda
