// d = <a, b>, q = <b, b>, n = <a, a> over the active elements; c = d / q if d < 0 and q > eps, else 0; then a -= c b, or a
// masked SGD step with a - c b. Three launches, and nothing is read back: products, one decision, the change.
// Products: pieces of 4096 elements over a persistent grid, four 16-byte groups of both streams in flight per thread, sums in
// fp32 by a fixed tree into the piece's own slot; the decision adds the slots in fp64, in an order that only the sizes give.
// No element moves between threads with a pointer's alignment, so a view gives the sums of a copy. The change walks the list
// backwards, to start on what is still in L2, and where one decision holds for all it ends at once if that is 0.
// Bytes per fp32 element: 8, then 12 with a conflict, or 20 (24) with the step, and the masks in each pass; bandwidth-bound.
// The projection is PCGrad's (Yu et al., 2020), restricted to a mask.
// State: compiled for sm_80 and sm_90a and run under the emulator of csrc/simt; not yet run on a GPU, no time measured.
//
// budget: conflict_dots_kernel<float 64
// budget: conflict_dots_kernel 80
// budget: conflict_judge_kernel 40
// budget: conflict_subtract_kernel 64
// budget: projected_sgd_kernel 80
// promise: conflict_dots_kernel LDG.E.128 STG.E.128 no-fp64
// promise: conflict_judge_kernel LDG.E.128
// promise: conflict_subtract_kernel LDG.E.128 STG.E.128 no-fp64
// promise: projected_sgd_kernel LDG.E.128 STG.E.128 no-fp64
// conflict_judge_kernel is meant to use fp64: one block per decision adds a few thousand numbers and divides once.
#pragma once
#include "cuda/collective.cuh"
#include "cuda/project_conflict.h"
#include "cuda/sgd_step.cuh"

namespace sparsekern::cuda {

template <int capacity>
struct ConflictTable {
  ConflictEntry entry[capacity];
};

struct DotsArgs {
  ListPlan plan;
  ConflictSums* slots;
  bool invert;
};

struct SubtractArgs {
  ListPlan plan;
  const float* coefficients;
  bool per_tensor;
};

struct ProjectedArgs {
  ListPlan plan;
  SgdOptions options;
  const float* coefficients;
};

// The slots of one decision.
struct JudgeRange {
  int64_t first, count, row;
};
template <int capacity>
struct JudgeTable {
  JudgeRange range[capacity];
};

// Up to 128 bytes in flight per thread; unpacking halves takes more than 64 registers.
template <class G>
constexpr int kDotsBlocksPerSm = sizeof(G) == 4 ? 4 : 3;
constexpr int kSubtractBlocksPerSm = 4, kProjectedBlocksPerSm = 3;
constexpr int kSmallConflictTable = 80, kLargeConflictTable = 500;
constexpr int kSmallJudgeTable = 80, kLargeJudgeTable = 1300;
static_assert(sizeof(ConflictTable<kLargeConflictTable>) + sizeof(ProjectedArgs) <= kParameterBytes);
static_assert(sizeof(JudgeTable<kLargeJudgeTable>) + sizeof(JudgeOptions) + 16 <= kParameterBytes);

// Hidden elements count as 0 by selection, so that a NaN among them reaches nothing.
template <SgdKind kind, int N, int U, class G>
__device__ __forceinline__ void add_products(const G* a, const G* b, const void* where, const int (&at)[U], bool invert, bool aligned,
                                             bool where_aligned, ConflictSums& sums) {
  unsigned on[U];
  Group<G, N> x[U], y[U];
#pragma unroll
  for (int u = 0; u < U; ++u) {
    on[u] = at[u] < 0 ? 0 : active_bits<kind, N>(where, at[u], where_aligned);
    if (kind != SgdKind::none && invert && at[u] >= 0) on[u] ^= (1u << N) - 1;
  }
#pragma unroll
  for (int u = 0; u < U; ++u)
    if (on[u]) {
      x[u] = load_group<G, N>(a + at[u], aligned);
      y[u] = load_group<G, N>(b + at[u], aligned);
    }
#pragma unroll
  for (int u = 0; u < U; ++u) {
    if (!on[u]) continue;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const bool inside = on[u] >> k & 1;
      const float v = inside ? to_float(x[u].at[k]) : 0.f, w = inside ? to_float(y[u].at[k]) : 0.f;
      sums.d = __fmaf_rn(v, w, sums.d);
      sums.q = __fmaf_rn(w, w, sums.q);
      sums.n = __fmaf_rn(v, v, sums.n);
    }
  }
}

// This thread's part of one piece: groups t, t + 256, ... and at most one of the loose elements behind them.
template <SgdKind kind, class G>
__device__ __forceinline__ void dots_piece(const ConflictEntry& e, int64_t begin, int64_t end, bool invert, ConflictSums& sums) {
  constexpr int N = 16 / sizeof(G), U = kDotPiece / N / kThreads;
  static_assert(N * U * kThreads == kDotPiece);
  const int count = static_cast<int>(end - begin), self = static_cast<int>(threadIdx.x);
  const G *a = static_cast<const G*>(e.grad) + begin, *b = static_cast<const G*>(e.other) + begin;
  const void* where = static_cast<const char*>(e.where) + (kind == SgdKind::bits ? begin / 8 : begin);
  int at[U];
#pragma unroll
  for (int u = 0; u < U; ++u) at[u] = (self + u * kThreads + 1) * N <= count ? (self + u * kThreads) * N : -1;
  add_products<kind, N, U>(a, b, where, at, invert, is_aligned(a, 16) && is_aligned(b, 16), is_aligned(where, 4), sums);
  if (self < count % N) {
    const int loose[1] = {count - count % N + self};
    add_products<kind, 1, 1>(a, b, where, loose, invert, false, false, sums);
  }
}

template <class G, int capacity>
__global__ void __launch_bounds__(kThreads, kDotsBlocksPerSm<G>)
    conflict_dots_kernel(const __grid_constant__ ConflictTable<capacity> table, const __grid_constant__ DotsArgs args) {
  constexpr int warps = kThreads / 32;
  __shared__ ConflictSums of_warp[2][warps];  // two by turns: one barrier per piece is enough
  int turn = 0;
  for (int64_t k = blockIdx.x; k < args.plan.pieces; k += gridDim.x, turn ^= 1) {
    const Piece piece = piece_at(table.entry, args.plan, k);
    const ConflictEntry& e = table.entry[piece.tensor];
    ConflictSums sums = {0, 0, 0, 0};
    if (e.other) {
      if (e.kind == SgdKind::bools) dots_piece<SgdKind::bools, G>(e, piece.begin, piece.end, args.invert, sums);
      else if (e.kind == SgdKind::bits) dots_piece<SgdKind::bits, G>(e, piece.begin, piece.end, args.invert, sums);
      else dots_piece<SgdKind::none, G>(e, piece.begin, piece.end, args.invert, sums);
    }
    sums = {warp_sum(sums.d), warp_sum(sums.q), warp_sum(sums.n), 0};
    if (lane_id() == 0) of_warp[turn][warp_id()] = sums;
    __syncthreads();
    if (threadIdx.x == 0) {
#pragma unroll
      for (int w = 1; w < warps; ++w) {
        const ConflictSums& more = of_warp[turn][w];
        sums.d += more.d, sums.q += more.q, sums.n += more.n;
      }
      args.slots[e.first + piece.tensor + piece.begin / kDotPiece] = sums;
    }
  }
}

constexpr int kJudgeThreads = 1024;

template <int capacity>
__global__ void __launch_bounds__(kJudgeThreads) conflict_judge_kernel(const __grid_constant__ JudgeTable<capacity> table, const ConflictSums* slots,
                                                                       const __grid_constant__ JudgeOptions options) {
  __shared__ double of_warp[3][kJudgeThreads / 32];
  const JudgeRange range = table.range[blockIdx.x];
  double sum[3] = {0, 0, 0};
#pragma unroll 4
  for (int64_t k = threadIdx.x; k < range.count; k += blockDim.x) {
    const float4 s = reinterpret_cast<const float4*>(slots)[range.first + k];
    sum[0] += s.x, sum[1] += s.y, sum[2] += s.z;
  }
  for (int c = 0; c < 3; ++c) {
    sum[c] = warp_sum(sum[c]);
    if (lane_id() == 0) of_warp[c][warp_id()] = sum[c];
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < static_cast<int>(blockDim.x / 32); ++w)
    for (int c = 0; c < 3; ++c) sum[c] += of_warp[c][w];
  const double d = sum[0], q = sum[1], n = sum[2];
  // With NaN every comparison is false.
  const bool applied = d < 0 && d > -INFINITY && q > options.eps && q < INFINITY && !(options.found_inf && *options.found_inf != 0);
  options.coefficients[range.row] = applied ? static_cast<float>(d / q) : 0.f;
  if (options.stats) {
    float* out = options.stats + 4 * range.row;
    out[0] = static_cast<float>(d);
    out[1] = static_cast<float>(q);
    out[2] = q == 0 || n == 0 ? 0.f : static_cast<float>(d / (sqrt(q) * sqrt(n)));
    out[3] = applied ? 1.f : 0.f;
  }
}

// a -= c b is the plain step of a parameter a with the gradient b and the rate c.
struct Subtraction {
  void* param;
  const void *grad, *where;
  static constexpr void* momentum = nullptr;
};

template <class G, int capacity>
__global__ void __launch_bounds__(kThreads, kSubtractBlocksPerSm)
    conflict_subtract_kernel(const __grid_constant__ ConflictTable<capacity> table, const __grid_constant__ SubtractArgs args) {
  if (!args.per_tensor && *args.coefficients == 0) return;
  for (int64_t k = args.plan.pieces - 1 - blockIdx.x; k >= 0; k -= gridDim.x) {
    const Piece piece = piece_at(table.entry, args.plan, k);
    const ConflictEntry& e = table.entry[piece.tensor];
    const float coefficient = args.coefficients[e.row];
    if (!e.other || coefficient == 0) continue;
    SgdStep step{};
    step.s.lr = coefficient;
    step.scale = 1;
    const Subtraction s = {const_cast<void*>(e.grad), e.other, e.where};
    if (e.kind == SgdKind::bools) sgd_piece<SgdKind::bools, G, G>(s, piece.begin, piece.end, step);
    else if (e.kind == SgdKind::bits) sgd_piece<SgdKind::bits, G, G>(s, piece.begin, piece.end, step);
    else sgd_piece<SgdKind::none, G, G>(s, piece.begin, piece.end, step);
  }
}

template <class P, class G, int capacity>
__global__ void __launch_bounds__(kThreads, kProjectedBlocksPerSm)
    projected_sgd_kernel(const __grid_constant__ ConflictTable<capacity> table, const __grid_constant__ ProjectedArgs args) {
  const SgdStep step = read_step(args.options);
  if (step.skip) return;
  for (int64_t k = args.plan.pieces - 1 - blockIdx.x; k >= 0; k -= gridDim.x) {
    const Piece piece = piece_at(table.entry, args.plan, k);
    const ConflictEntry& e = table.entry[piece.tensor];
    const float coefficient = args.coefficients[e.row];
    const Projection out = {coefficient == 0 ? nullptr : e.other, coefficient};
    if (e.kind == SgdKind::bools) sgd_piece<SgdKind::bools, P, G>(e, piece.begin, piece.end, step, out);
    else if (e.kind == SgdKind::bits) sgd_piece<SgdKind::bits, P, G>(e, piece.begin, piece.end, step, out);
    else sgd_piece<SgdKind::none, P, G>(e, piece.begin, piece.end, step, out);
  }
}

}  // namespace sparsekern::cuda
