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

// The values in the pattern's order: gathered into the workspace where there is a permutation, which is then gone.
size_t spmm_values_bytes(const SpmmArgs& args);
int order_spmm_values(SpmmArgs& args, void* workspace, cudaStream_t stream);

// b row-major: made so in the workspace where it is not.
size_t spmm_operand_bytes(const SpmmArgs& args);
int turn_spmm_operand(SpmmArgs& args, void* workspace, cudaStream_t stream);

// Returns a cudaError_t, like the others. scalar: a few lanes per row gather rows of b from the L2 cache.
size_t spmm_scalar_workspace_bytes(const SpmmArgs& args);
int launch_spmm_scalar(const SpmmArgs& args, void* workspace, const DeviceProps& props, cudaStream_t stream);

// staged: blocks gather from tiles of b in shared memory. Not for f64 or 2^31 nonzeros and more, and not under a guard.
inline size_t spmm_staged_workspace_bytes(const SpmmArgs& args) { return spmm_values_bytes(args); }
int launch_spmm_staged(const SpmmArgs& args, void* workspace, const DeviceProps& props, cudaStream_t stream);

// densify: dense[rows, width] = W in b's type, 0 elsewhere; width >= cols, a row a multiple of 16 bytes like the address. Each of
// the `densify_checks` flags is set if a part of b is not finite: then the dense product is to be replaced by a guarded launch.
inline int densify_checks(const DeviceProps& props) { return 2 * props.sms; }
int launch_csr_densify(const SpmmArgs& args, void* dense, int64_t width, int32_t* flags, const DeviceProps& props, cudaStream_t stream);

}  // namespace sparsekern::cuda
