// out = W b + bias for W in CSR form, each sum a chain of fused multiply-adds in column order: the bits depend on the row
// alone, not on row_order, the grid or the algorithm.
// spmm_scalar_kernel: `lanes` lanes have a row and 16 bytes of columns each; eight rows of b and the next eight entries are
// asked for together. Moves nnz * n * size(b) bytes out of the L2 cache, its bound (about 5.5 TB/s on an H200; 2 nnz n flops are far below).
// Neighbouring warps share a block of columns, so that with many columns the part of b in use stays in the cache.
// spmm_transpose_kernel: a column-major b as rows of whole 16-byte groups, 2 K n size(b) bytes.
// spmm_values_kernel: values in the order of the transposed pattern, once per product instead of once per block of columns.
// State: compiled for sm_80 and sm_90a and run under the emulator of csrc/simt; not yet run on a GPU, no time measured.
//
// budget: spmm_scalar_kernel 100
// budget: spmm_scalar_kernel<2 112
// budget: spmm_transpose_kernel 40
// budget: spmm_values_kernel 40
// promise: spmm_scalar_kernel<4 LDG.E.128 STG.E.128 no-fp64
// promise: spmm_scalar_kernel<8 LDG.E.128 STG.E.128 no-fp64
#pragma once
#include "cuda/collective.cuh"
#include "cuda/csr_product.cuh"

namespace sparsekern::cuda {

constexpr int kTile = 32;  // of the transposition

// Entries of a row from position e on; column -1 where there are none any more.
template <int U, class S>
struct Entries {
  int32_t col[U];
  S weight[U];
  template <class V, bool may_permute, class Columns>
  __device__ __forceinline__ void load(const SpmmArgs& a, const Columns& columns, int64_t e, int64_t end) {
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const bool there = e + u < end;
      const int64_t from = may_permute && there && a.perm ? a.perm[e + u] : e + u;
      col[u] = there ? columns(e + u) : -1;
      weight[u] = there ? S(widened(static_cast<const V*>(a.val)[from])) : no_weight<S>();
    }
  }
};

// T: b and out. V: values. N: columns per lane; more than one where b is row-major and every row starts at a multiple of 16
// bytes, and there is no permutation. A: SpmmArgs, or what is made of it for another form of the matrix.
template <int N, class T, class V, class A>
__device__ __forceinline__ void scalar_product(const A& a, int lane_bits, bool store_aligned) {
  constexpr int kInFlight = 8;
  using S = Sum<T>;
  if (!guard_open(a)) return;
  const int lane = lane_id(), lanes = 1 << lane_bits;
  const int64_t sets = (a.rows + (32 >> lane_bits) - 1) >> (5 - lane_bits);  // rows that a warp has at a time
  const int64_t chunks = (a.n + lanes * N - 1) / (lanes * N), step = int64_t{gridDim.x} * (kThreads / 32);
  for (int64_t chunk = blockIdx.y; chunk < chunks; chunk += gridDim.y)
    for (int64_t set = int64_t{blockIdx.x} * (kThreads / 32) + warp_id(); set < sets; set += step) {
      const int64_t place = (set << (5 - lane_bits)) + (lane >> lane_bits), j = (chunk * lanes + (lane & (lanes - 1))) * N;
      if (place >= a.rows || j >= a.n) continue;
      const int64_t row = a.row_order ? a.row_order[place] : place;
      const RowRange range = row_range(a, row);
      const auto columns = columns_of(a, row);
      const T* b = static_cast<const T*>(a.b) + (N == 1 ? j * a.b_col : j);
      S sum[N] = {};
      Entries<kInFlight, S> now, next;
      next.template load<V, N == 1>(a, columns, range.begin, range.end);
      for (int64_t e = range.begin; e < range.end; e += kInFlight) {
        now = next;
        Group<T, N> x[kInFlight];
#pragma unroll
        for (int u = 0; u < kInFlight; ++u) {
          x[u] = {};
          if (now.col[u] >= 0) x[u] = load_group<T, N>(b + now.col[u] * a.b_row, N > 1);
        }
        next.template load<V, N == 1>(a, columns, e + kInFlight, range.end);
#pragma unroll
        for (int u = 0; u < kInFlight; ++u) {
          S wide[N];
          widen_group(x[u], wide);
#pragma unroll
          for (int k = 0; k < N; ++k) sum[k] = fused(now.weight[u], wide[k], sum[k]);
        }
      }
      store_sums<T, N>(a, row, j, sum, bias_at<T>(a, row), store_aligned);
    }
}

template <int N, class T, class V>
__global__ void __launch_bounds__(kThreads, 2) spmm_scalar_kernel(const __grid_constant__ SpmmArgs a, int lane_bits, bool store_aligned) {
  scalar_product<N, T, V>(a, lane_bits, store_aligned);
}
template <int N, class T, class V>
auto scalar_kernel(const SpmmArgs&) {
  return &spmm_scalar_kernel<N, T, V>;
}

// to[i * to_row + j] = from[i + j * from_col] for i < height; columns from n up to to_row become 0.
template <class T>
__global__ void __launch_bounds__(kThreads) spmm_transpose_kernel(const __grid_constant__ SpmmArgs a, T* to, int64_t to_row) {
  __shared__ T tile[kTile][kTile + 1];
  const auto* from = static_cast<const T*>(a.b);
  const int x = static_cast<int>(threadIdx.x) % kTile, y = static_cast<int>(threadIdx.x) / kTile;
  const int64_t across = (to_row + kTile - 1) / kTile, tiles = across * ((a.cols + kTile - 1) / kTile);
  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    const int64_t i0 = t / across * kTile, j0 = t % across * kTile;
    for (int k = y; k < kTile; k += kThreads / kTile)
      tile[k][x] = i0 + x < a.cols && j0 + k < a.n ? from[i0 + x + (j0 + k) * a.b_col] : narrowed<T>(Sum<T>(0));
    __syncthreads();
    for (int k = y; k < kTile; k += kThreads / kTile)
      if (i0 + k < a.cols && j0 + x < to_row) to[(i0 + k) * to_row + j0 + x] = tile[x][k];
    __syncthreads();
  }
}

template <class V>
__global__ void __launch_bounds__(kThreads) spmm_values_kernel(const __grid_constant__ SpmmArgs a, Sum<V>* to) {
  const auto* val = static_cast<const V*>(a.val);
  for (int64_t e = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; e < a.nnz; e += static_cast<int64_t>(gridDim.x) * kThreads)
    to[e] = widened(val[a.perm[e]]);
}

}  // namespace sparsekern::cuda
