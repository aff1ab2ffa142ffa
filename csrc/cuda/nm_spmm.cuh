// out = W b + bias for W with n of every m columns stored, in the layouts of nm_pack.
// nm_scalar_kernel and nm_densify_kernel are those of csr_spmm (csr_spmm.cuh, csr_densify.cuh) with columns made of positions: 1 byte of index
// beside each value instead of 4, no row pointers. Two more:
// nm_staged_kernel (nm_spmm_staged.cuh): b gathered from shared memory; every row has the same number of entries in a tile, so nothing is
// searched, checked or voted on. nm_mma_kernel (nm_spmm_mma.cuh): the condensed product of rows that share columns, on the tensor cores.
// State: compiled for sm_80 and sm_90a and run under the emulator of csrc/simt; not yet run on a GPU, no time measured.
//
// budget: nm_scalar_kernel 120
// budget: nm_densify_kernel 64
// promise: nm_scalar_kernel<4 LDG.E.128 STG.E.128 no-fp64
// promise: nm_scalar_kernel<8 LDG.E.128 STG.E.128 no-fp64
// promise: nm_densify_kernel STG.E.128 LDG.E.128 no-fp64
#pragma once
#include "cuda/csr_densify.cuh"
#include "cuda/csr_spmm.cuh"
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

template <int N, class T, class V>
__global__ void __launch_bounds__(kThreads, 2) nm_scalar_kernel(const __grid_constant__ NmArgs a, int lane_bits, bool store_aligned) {
  scalar_product<N, T, V>(a, lane_bits, store_aligned);
}
template <int N, class T, class V>
auto scalar_kernel(const NmArgs&) {
  return &nm_scalar_kernel<N, T, V>;
}

template <class T, class V>
__global__ void __launch_bounds__(kThreads) nm_densify_kernel(const __grid_constant__ NmArgs a, T* dense, int64_t width, int32_t* flags, int checks) {
  make_dense<T, V>(a, dense, width, flags, checks);
}
template <class T, class V>
auto densify_kernel(const NmArgs&) {
  return &nm_densify_kernel<T, V>;
}

}  // namespace sparsekern::cuda
