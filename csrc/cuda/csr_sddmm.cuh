// out[e] = <a[row(e), :], b[col(e), :]> at the entries of a CSR pattern or of a list of places, one of three ways (sddmm_cost.h):
// gather: eight lanes share a dot, a warp does sixteen at a time: 16-byte loads, products added in order along each lane, then lanes 4,
// 2 and 1 apart: a tree of its own for every dot, whatever the grid. Bound by entries * n * size(b) bytes from the L2 cache; a row of a
// serves its neighbours from the L1 cache, where even fetching it for every entry takes a third of the rate that the L2 cache leaves
// busy. The row of an entry is searched in the row pointers by its lane, 32 entries side by side: long and empty rows cost nothing, and
// lists of places go the same way with the same bits. Operands that are not rows of aligned 16-byte chunks (column-major activations)
// are copied into such rows first, through shared memory: (rows + cols) * n * size bytes twice, little beside the gather. Long dots go
// in passes over n, so that what is gathered from fits the L2 cache.
// staged: csr_sddmm_staged.cuh. dense: the product itself is cuBLAS's, by torch (csr_sddmm_op.cpp): what runs the tensor cores of each
// GPU best, takes any layout and is proven; here only its entries are picked, 8 to 32 bytes each from a chunk still in the L2 cache.
// State: compiled for sm_80 and sm_90a and run under the emulator of csrc/simt; not yet run on a GPU, no time measured.
//
// budget: sddmm_gather_kernel 80
// budget: sddmm_align_kernel 48
// budget: sddmm_sample_rows_kernel 48
// budget: sddmm_sample_places_kernel 32
// promise: sddmm_gather_kernel LDG.E.128 no-fp64
// promise: sddmm_gather_kernel<double LDG.E.128
// promise: sddmm_align_kernel no-fp64
// promise: sddmm_sample_rows_kernel no-fp64
// promise: sddmm_sample_places_kernel no-fp64
#pragma once
#include <type_traits>

#include "cuda/collective.cuh"
#include "cuda/csr_sddmm.h"
#include "cuda/vector_io.cuh"

namespace sparsekern::cuda {

// ---- places ----

__device__ __forceinline__ int64_t number_at(const void* p, int64_t i, bool wide) {
  return wide ? static_cast<const int64_t*>(p)[i] : static_cast<const int32_t*>(p)[i];
}

__device__ __forceinline__ int64_t valid_entries(const SddmmPlaces& p) {
  if (p.crow) return p.entries;
  const int64_t count = number_at(p.count, 0, p.wide);
  return count < p.entries ? count : p.entries;
}

// The last row that begins at or before entry e.
__device__ __forceinline__ int row_of(const SddmmPlaces& p, int64_t e) {
  if (!p.crow) return p.row[e];
  int low = 0, high = static_cast<int>(p.rows);
  while (high - low > 1) {
    const int middle = low + (high - low) / 2;
    if (number_at(p.crow, middle, p.wide) <= e) low = middle;
    else high = middle;
  }
  return low;
}

__device__ __forceinline__ void store_as(void* out, int64_t e, double x, SddmmType) { static_cast<double*>(out)[e] = x; }
__device__ __forceinline__ void store_as(void* out, int64_t e, float x, SddmmType type) {
  if (type == SddmmType::f32) static_cast<float*>(out)[e] = x;
  else if (type == SddmmType::bf16) static_cast<__nv_bfloat16*>(out)[e] = from_float<__nv_bfloat16>(x);
  else static_cast<__half*>(out)[e] = from_float<__half>(x);
}

// ---- gather ----

struct SddmmGatherArgs {
  SddmmPlaces places;
  const char *a, *b;
  int64_t a_pitch, b_pitch;  // bytes, multiples of 16
  int chunks;                // of 16 bytes in a row, in this pass
  void* out;
  SddmmType out_type;
  void *sums, *low;  // [entries] fp32 (fp64): what passes hand on: sums, and (or null) what they lost; not used by a single pass
  bool first, last;
};

constexpr int kDotLanes = 8;      // that share a dot: 128 bytes of a row at a time
constexpr int kDotsInFlight = 4;  // of those lanes
constexpr int kSlots = 32 / kDotLanes;
constexpr int kDotsAtATime = kSlots * kDotsInFlight;  // by a warp

template <class T>
using Chunk = Group<T, 16 / sizeof(T)>;
template <class T>
__device__ __forceinline__ Chunk<T> load_chunk(const void* p) {
  return load_group<T, 16 / sizeof(T)>(static_cast<const T*>(p), true);
}

__device__ __forceinline__ float add_product(float x, float y, float sum) { return __fmaf_rn(x, y, sum); }
__device__ __forceinline__ double add_product(double x, double y, double sum) { return fma(x, y, sum); }
template <class T>
__device__ __forceinline__ float widened(T x) {
  return to_float(x);
}
__device__ __forceinline__ double widened(double x) { return x; }

template <class T, class A>
__device__ __forceinline__ A add_products(const Chunk<T>& x, const Chunk<T>& y, A sum) {
#pragma unroll
  for (int k = 0; k < static_cast<int>(16 / sizeof(T)); ++k) sum = add_product(widened(x.at[k]), widened(y.at[k]), sum);
  return sum;
}

// The dots of four entries whose products eight lanes hold: lanes 2 u and 2 u + 1 get that of entry u. Lanes 4, 2 and 1 apart are added.
template <class A>
__device__ __forceinline__ A four_dots(const A (&sum)[kDotsInFlight], int part) {
  static_assert(kDotLanes == 8 && kDotsInFlight == 4);
  const bool upper = part & 4, odd = part & 2;
  const A x = (upper ? sum[2] : sum[0]) + __shfl_xor_sync(kAllLanes, upper ? sum[0] : sum[2], 4);
  const A y = (upper ? sum[3] : sum[1]) + __shfl_xor_sync(kAllLanes, upper ? sum[1] : sum[3], 4);
  const A z = (odd ? y : x) + __shfl_xor_sync(kAllLanes, odd ? x : y, 2);
  return z + __shfl_xor_sync(kAllLanes, z, 1);
}

// A single pass stores its dots. A sum of very many passes keeps what its additions lose beside it (Knuth's two-sum).
template <class A>
__device__ __forceinline__ void store_dot(const SddmmGatherArgs& args, int64_t e, A x) {
  A *sums = static_cast<A*>(args.sums), *low = static_cast<A*>(args.low);
  if (!args.first) {
    const A before = sums[e], sum = before + x;
    if (low) {
      const A added = sum - before, lost = ((before - (sum - added)) + (x - added)) + low[e];
      low[e] = lost;
      x = args.last && lost == lost ? sum + lost : sum;  // it is not a number beside an infinite sum
    } else {
      x = sum;
    }
  } else if (low) {
    low[e] = 0;
  }
  if (args.last) store_as(args.out, e, x, args.out_type);
  else sums[e] = x;
}

template <class T>
__global__ void __launch_bounds__(kThreads, 3) sddmm_gather_kernel(const __grid_constant__ SddmmGatherArgs args) {
  using A = std::conditional_t<std::is_same<T, double>::value, double, float>;
  const SddmmPlaces& p = args.places;
  const int lane = lane_id(), part = lane % kDotLanes, slot = lane / kDotLanes;
  const int64_t begin = (static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + warp_id()) * 32, count = valid_entries(p);
  if (begin >= p.entries) return;
  // Each lane looks up one of 32 entries. Those past the count stand in with the first one.
  const int64_t e = begin + lane;
  int row = 0, col = 0;
  if (e < count) {
    col = p.col[e];
    row = row_of(p, e);
  }
  const int row_0 = __shfl_sync(kAllLanes, row, 0), col_0 = __shfl_sync(kAllLanes, col, 0);
  if (e >= count) row = row_0, col = col_0;

#pragma unroll 1
  for (int from = 0; from < 32 && begin + from < count; from += kDotsAtATime) {
    const char *x[kDotsInFlight], *y[kDotsInFlight];
    A sum[kDotsInFlight];
#pragma unroll
    for (int u = 0; u < kDotsInFlight; ++u) {
      const int source = from + u * kSlots + slot;
      x[u] = args.a + __shfl_sync(kAllLanes, row, source) * args.a_pitch;
      y[u] = args.b + __shfl_sync(kAllLanes, col, source) * args.b_pitch;
      sum[u] = 0;
    }
#pragma unroll 1
    for (int chunk = part; chunk < args.chunks; chunk += kDotLanes) {
      Chunk<T> left[kDotsInFlight], right[kDotsInFlight];
#pragma unroll
      for (int u = 0; u < kDotsInFlight; ++u) {
        right[u] = load_chunk<T>(y[u] + 16 * chunk);
        left[u] = load_chunk<T>(x[u] + 16 * chunk);
      }
#pragma unroll
      for (int u = 0; u < kDotsInFlight; ++u) sum[u] = add_products<T>(left[u], right[u], sum[u]);
    }
    const A dot = four_dots(sum, part);
    const int64_t mine = begin + from + part / 2 * kSlots + slot;
    if (part % 2 == 0 && mine < count) store_dot(args, mine, dot);
  }
  if (e >= count && e < p.entries) store_dot(args, e, A(0));
}

// ---- operands into aligned rows ----

struct SddmmAlignSide {
  const void* from;
  int64_t height, stride;  // in elements
  bool by_columns;
  void* to;
  int64_t pitch;  // in words of 4 bytes (8 of fp64)
  int across, tiles;
};

struct SddmmAlignArgs {
  SddmmAlignSide a, b;
  int64_t n;  // elements of a row in this pass; the rest up to the pitch is 0
};

// A tile of 32 rows of 32 words by the block; of columns, through shared memory, so that reads and writes are both of whole lines.
template <class T>
__global__ void __launch_bounds__(kThreads) sddmm_align_kernel(const __grid_constant__ SddmmAlignArgs args) {
  using Word = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  constexpr int per_word = sizeof(Word) / sizeof(T);
  __shared__ Word tile[32][33];
  const bool of_a = static_cast<int>(blockIdx.x) < args.a.tiles;
  const SddmmAlignSide& side = of_a ? args.a : args.b;
  const int t = static_cast<int>(blockIdx.x) - (of_a ? 0 : args.a.tiles);
  const int64_t i_0 = static_cast<int64_t>(t / side.across) * 32, w_0 = static_cast<int64_t>(t % side.across) * 32;
  const T* from = static_cast<const T*>(side.from);
  const auto word_at = [&](int64_t i, int64_t w) {
    Word word = 0;
#pragma unroll
    for (int k = 0; k < per_word; ++k) {
      const int64_t j = w * per_word + k;
      if (i < side.height && j < args.n) word |= static_cast<Word>(from[side.by_columns ? i + j * side.stride : i * side.stride + j]) << (16 * k);
    }
    return word;
  };
  const int lane = lane_id();
  if (side.by_columns) {
#pragma unroll
    for (int k = 0; k < 32; k += kThreads / 32) tile[k + warp_id()][lane] = word_at(i_0 + lane, w_0 + k + warp_id());
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < 32; k += kThreads / 32) {
    const int64_t i = i_0 + k + warp_id(), w = w_0 + lane;
    const Word word = side.by_columns ? tile[lane][k + warp_id()] : word_at(i, w);
    if (i < side.height && w < side.pitch) static_cast<Word*>(side.to)[i * side.pitch + w] = word;
  }
}

// ---- entries of a dense product ----

// kThreads / lanes rows by a block, four entries of each lane at a time.
__global__ void __launch_bounds__(kThreads) sddmm_sample_rows_kernel(const __grid_constant__ SddmmPlaces p, const float* dense, int64_t first,
                                                                     int64_t height, int lanes, void* out, SddmmType out_type) {
  constexpr int kAtATime = 4;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * (kThreads / lanes) + static_cast<int>(threadIdx.x) / lanes;
  if (i >= height) return;
  const float* row = dense + i * p.cols;
  const int64_t end = number_at(p.crow, first + i + 1, p.wide);
  for (int64_t e = number_at(p.crow, first + i, p.wide) + static_cast<int>(threadIdx.x) % lanes; e < end; e += kAtATime * lanes) {
    int col[kAtATime];
    float x[kAtATime];
#pragma unroll
    for (int k = 0; k < kAtATime; ++k) col[k] = e + k * lanes < end ? p.col[e + k * lanes] : 0;
#pragma unroll
    for (int k = 0; k < kAtATime; ++k) x[k] = row[col[k]];
#pragma unroll
    for (int k = 0; k < kAtATime; ++k)
      if (e + k * lanes < end) store_as(out, e + k * lanes, x[k], out_type);
  }
}

__global__ void __launch_bounds__(kThreads) sddmm_sample_places_kernel(const __grid_constant__ SddmmPlaces p, const float* dense, int64_t first,
                                                                       int64_t height, void* out, SddmmType out_type) {
  const int64_t e = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (e >= p.entries) return;
  if (e >= valid_entries(p)) {
    if (first == 0) store_as(out, e, 0.f, out_type);
    return;
  }
  const int64_t i = p.row[e] - first;
  if (i >= 0 && i < height) store_as(out, e, dense[i * p.cols + p.col[e]], out_type);
}

}  // namespace sparsekern::cuda
