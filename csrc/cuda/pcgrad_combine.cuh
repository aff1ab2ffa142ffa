// G[i][j] = <g_i, g_j> of T gradients; sequential PCGrad on that table, which leaves one weight per task; out = sum_k w_k g_k.
// Four launches, and nothing is read back. The first holds 16-byte groups of up to eight gradients in registers and feeds all
// their products from them: each gradient is read once. Pieces of 4096 elements over a persistent grid; sums in fp32 by a
// fixed tree into the piece's own slot, which do not change with a pointer's alignment; the slots are added in fp64, one block
// per product. Then one thread per task walks its order, and the last launch combines.
// Bytes per fp32 element: 4 T, then 4 T + 4, instead of about T^2 passes; bandwidth-bound. Beyond eight tasks the first pass
// multiplies blocks of four: 2 (ceil(T / 4) - 1) 16 bytes per element. Projections are PCGrad's (Yu et al., 2020).
// State: compiled for sm_80 and sm_90a and run under the emulator of csrc/simt; not yet run on a GPU, no time measured.
//
// budget: task_gram_kernel 128
// budget: gram_sum_kernel 40
// budget: pcgrad_weights_kernel 48
// budget: pcgrad_combine_kernel 80
// promise: task_gram_kernel LDG.E.128 no-fp64
// promise: pcgrad_combine_kernel LDG.E.128 STG.E.128 no-fp64
// gram_sum_kernel and pcgrad_weights_kernel are meant to use fp64: a few thousand additions and T^3 steps on the table.
#pragma once
#include "cuda/collective.cuh"
#include "cuda/pcgrad_combine.h"
#include "cuda/vector_io.cuh"

namespace sparsekern::cuda {

template <int entries, int pointers>
struct TaskTable {
  TaskEntry entry[entries];
  const void* data[pointers];
};

struct GramArgs {
  ListPlan plan;
  GramTile tile;
  float* slots;
  int64_t first, total;
  int tasks;
};

struct CombineArgs {
  ListPlan plan;
  const float* weights;
  int tasks;
};

constexpr int kSmallEntries = 64, kSmallPointers = 512, kLargeEntries = 340, kLargePointers = 3000;
static_assert(sizeof(TaskTable<kLargeEntries, kLargePointers>) + sizeof(GramArgs) <= kParameterBytes);

// 128 bytes in flight per thread, or 64 where a piece of halves has no more; T (T + 1) / 2 sums take the registers.
template <class G, int T>
constexpr int kGramBlocksPerSm = T == 2                     ? 4
                                 : T == 4 && sizeof(G) == 4 ? 3
                                                            : 2;
constexpr int kCombineBlocksPerSm = 3;

template <int T, int N, int U, class G>
__device__ __forceinline__ void add_gram(const G* const (&rows)[T], const int (&at)[U], bool aligned, float (&sums)[T * (T + 1) / 2]) {
  Group<G, N> x[U][T];
#pragma unroll
  for (int u = 0; u < U; ++u)
#pragma unroll
    for (int t = 0; t < T; ++t) {
      if (rows[t] && at[u] >= 0) x[u][t] = load_group<G, N>(rows[t] + at[u], aligned);
      else x[u][t] = Group<G, N>{};
    }
#pragma unroll
  for (int u = 0; u < U; ++u)
#pragma unroll
    for (int k = 0; k < N; ++k) {
      float v[T];
#pragma unroll
      for (int t = 0; t < T; ++t) v[t] = to_float(x[u][t].at[k]);
#pragma unroll
      for (int i = 0, p = 0; i < T; ++i)
#pragma unroll
        for (int j = i; j < T; ++j, ++p) sums[p] = __fmaf_rn(v[i], v[j], sums[p]);
    }
}

template <class G, int T, int entries, int pointers>
__global__ void __launch_bounds__(kThreads, kGramBlocksPerSm<G, T>)
    task_gram_kernel(const __grid_constant__ TaskTable<entries, pointers> table, const __grid_constant__ GramArgs args) {
  constexpr int pairs = T * (T + 1) / 2, warps = kThreads / 32;
  constexpr int N = 16 / sizeof(G), groups_each = kGramPiece / N / kThreads, U = 8 / T < groups_each ? 8 / T : groups_each;
  __shared__ float of_warp[2][warps][pairs];  // two by turns: one barrier per piece is enough
  const int self = static_cast<int>(threadIdx.x);
  int turn = 0;
  for (int64_t k = blockIdx.x; k < args.plan.pieces; k += gridDim.x, turn ^= 1) {
    const Piece piece = piece_at(table.entry, args.plan, k);
    const TaskEntry& e = table.entry[piece.tensor];
    const int count = static_cast<int>(piece.end - piece.begin);
    const G* rows[T];
    bool aligned = true;
#pragma unroll
    for (int t = 0; t < T; ++t) {
      rows[t] = args.tile.task[t] < 0 ? nullptr : static_cast<const G*>(table.data[e.row * args.tasks + args.tile.task[t]]) + piece.begin;
      aligned = aligned && is_aligned(rows[t], 16);
    }
    float sums[pairs] = {};
    for (int j = self; (j + 1) * N <= count; j += kThreads * U) {
      int at[U];
#pragma unroll
      for (int u = 0; u < U; ++u) at[u] = (j + u * kThreads + 1) * N <= count ? (j + u * kThreads) * N : -1;
      add_gram<T, N, U>(rows, at, aligned, sums);
    }
    if (self < count % N) {
      const int loose[1] = {count - count % N + self};
      add_gram<T, 1, 1>(rows, loose, false, sums);
    }
#pragma unroll
    for (int p = 0; p < pairs; ++p) {
      const float sum = warp_sum(sums[p]);
      if (lane_id() == 0) of_warp[turn][warp_id()][p] = sum;
    }
    __syncthreads();
    if (self < pairs) {
      float sum = of_warp[turn][0][self];
#pragma unroll
      for (int w = 1; w < warps; ++w) sum += of_warp[turn][w][self];
      args.slots[self * args.total + args.first + e.first + piece.tensor + piece.begin / kGramPiece] = sum;
    }
  }
}

constexpr int kGramSumThreads = 512;

// One block per product of a tile.
template <int T>
__global__ void __launch_bounds__(kGramSumThreads)
    gram_sum_kernel(const float* slots, int64_t total, int tasks, const __grid_constant__ GramTile tile, double* gram, float* out) {
  __shared__ double scratch[kGramSumThreads / 32];
  const float* mine = slots + blockIdx.x * total;
  double sum = 0;
#pragma unroll 8
  for (int64_t k = threadIdx.x; k < total; k += kGramSumThreads) sum += mine[k];
  sum = block_sum<kGramSumThreads>(sum, scratch);
  int i = 0, j = static_cast<int>(blockIdx.x);
  for (; j >= T - i; ++i) j -= T - i;
  const int a = tile.task[i], b = tile.task[i + j];
  if (threadIdx.x != 0 || a < 0 || b < 0) return;
  gram[a * tasks + b] = gram[b * tasks + a] = sum;
  if (out) out[a * tasks + b] = out[b * tasks + a] = static_cast<float>(sum);
}

template <int capacity>
__global__ void __launch_bounds__(capacity) pcgrad_weights_kernel(const double* gram, const int64_t* order, int tasks, bool mean, float* weights) {
  __shared__ double of_task[capacity][capacity];  // [share of gradient k][in the projected gradient of task i]
  const int self = static_cast<int>(threadIdx.x);
  if (self < tasks) project_row(gram, tasks, order + self * (tasks - 1), self, &of_task[0][self], capacity);
  __syncthreads();
  if (self >= tasks) return;
  double weight = 0;
  for (int i = 0; i < tasks; ++i) weight += of_task[self][i];
  weights[self] = static_cast<float>(mean ? weight / tasks : weight);
}

// U groups of the result, four gradients at a time.
template <int N, int U, class G>
__device__ __forceinline__ void combine_groups(const void* const* data, int64_t begin, const int (&at)[U], const float* weights, int tasks, G* out,
                                               bool grouped) {
  constexpr int chunk = 4;
  float sum[U][N] = {};
  for (int first = 0; first < tasks; first += chunk) {
    Group<G, N> x[chunk][U];
#pragma unroll
    for (int c = 0; c < chunk; ++c)
      if (first + c < tasks) {
        const G* row = static_cast<const G*>(data[first + c]) + begin;
        const bool aligned = grouped && is_aligned(row, 16);
#pragma unroll
        for (int u = 0; u < U; ++u)
          if (at[u] >= 0) x[c][u] = load_group<G, N, Cache::stream>(row + at[u], aligned);
      }
#pragma unroll
    for (int c = 0; c < chunk; ++c)
      if (first + c < tasks)
#pragma unroll
        for (int u = 0; u < U; ++u)
#pragma unroll
          for (int k = 0; k < N; ++k) {
            const float v = to_float(x[c][u].at[k]), w = weights[first + c];
            sum[u][k] = c == 0 && first == 0 ? __fmul_rn(v, w) : __fmaf_rn(v, w, sum[u][k]);
          }
  }
#pragma unroll
  for (int u = 0; u < U; ++u)
    if (at[u] >= 0) {
      Group<G, N> y;
#pragma unroll
      for (int k = 0; k < N; ++k) y.at[k] = from_float<G>(sum[u][k]);
      store_group(out + at[u], y, grouped);
    }
}

template <class G, int entries, int pointers>
__global__ void __launch_bounds__(kThreads, kCombineBlocksPerSm)
    pcgrad_combine_kernel(const __grid_constant__ TaskTable<entries, pointers> table, const __grid_constant__ CombineArgs args) {
  constexpr int N = 16 / sizeof(G), U = 8 / N;
  __shared__ float weights[kMaxTasks];
  const int self = static_cast<int>(threadIdx.x);
  if (self < args.tasks) weights[self] = args.weights[self];
  __syncthreads();
  for (int64_t k = blockIdx.x; k < args.plan.pieces; k += gridDim.x) {
    const Piece piece = piece_at(table.entry, args.plan, k);
    const TaskEntry& e = table.entry[piece.tensor];
    const int count = static_cast<int>(piece.end - piece.begin), groups = count / N;
    const void* const* data = table.data + e.row * args.tasks;
    G* out = static_cast<G*>(e.out) + piece.begin;
    for (int j = self; j < groups; j += kThreads * U) {
      int at[U];
#pragma unroll
      for (int u = 0; u < U; ++u) at[u] = j + u * kThreads < groups ? (j + u * kThreads) * N : -1;
      combine_groups<N, U>(data, piece.begin, at, weights, args.tasks, out, true);
    }
    if (self < count % N) {
      const int loose[1] = {groups * N + self};
      combine_groups<1, 1>(data, piece.begin, loose, weights, args.tasks, out, false);
    }
  }
}

}  // namespace sparsekern::cuda
