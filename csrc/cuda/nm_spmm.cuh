// out = W b + bias for W with n of every m columns stored, in the layouts of nm_pack.
// Its positions as columns, for the kernels that csr_spmm has (spmm_scalar_kernel, csr_densify_kernel): 1 byte of index beside each value
// instead of 4, no row pointers. The kernels of its own:
// nm_staged_kernel (nm_spmm_staged.cuh): b gathered from shared memory; every row has the same number of entries in a tile, so nothing is
// searched, checked or voted on. nm_mma_kernel (nm_spmm_mma.cuh): the condensed product of rows that share columns, on the tensor cores.
// State: compiled for sm_80 and sm_90a and run under the emulator of csrc/simt; not yet run on a GPU, no time measured.
#pragma once
#include "cuda/csr_product.cuh"
#include "cuda/nm_spmm.h"

namespace sparsekern::cuda {

__device__ __forceinline__ RowRange row_range(const NmArgs& a, int64_t row) { return {row * a.per_row, (row + 1) * a.per_row}; }

// A position that is none stays inside of b.
__device__ __forceinline__ unsigned within_group(unsigned position, int group) {
  const unsigned last = static_cast<unsigned>(group) - 1;
  return position < last ? position : last;
}

// The first column of the group that entry `at` of a row belongs to.
__device__ __forceinline__ unsigned group_column(const NmArgs& a, unsigned at) {
  return static_cast<unsigned>(static_cast<uint64_t>(at) * a.by_keep.magic >> a.by_keep.shift) * a.group;
}

__device__ __forceinline__ const uint8_t* index_of(const NmArgs& a, int64_t row) { return a.index + (a.v == 1 ? row : row / a.v) * a.per_row; }

struct NmColumns {
  const NmArgs& a;
  const uint8_t* index;
  int64_t begin;
  __device__ __forceinline__ int32_t operator()(int64_t e) const {
    const unsigned at = static_cast<unsigned>(e - begin);
    return static_cast<int32_t>(group_column(a, at) + within_group(index[at], a.group));
  }
};
__device__ __forceinline__ NmColumns columns_of(const NmArgs& a, int64_t row) { return {a, index_of(a, row), row * a.per_row}; }

}  // namespace sparsekern::cuda
