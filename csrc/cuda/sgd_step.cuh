// The masked SGD step of groups of elements and of one piece, shared by the masked, the packed and the projected update.
#pragma once
#include "cuda/masked_sgd.h"
#include "cuda/vector_io.cuh"

namespace sparsekern::cuda {

// One piece of one tensor. Offsets inside a piece fit 32 bits.
template <class P, class G>
struct SgdSpan {
  P* param;
  const G* grad;   // of the piece; of the whole tensor when gathered
  const G* other;  // what is projected out of grad, or null
  P* momentum;
  const void* where;
  float coefficient;                                                                 // of other
  bool param_aligned, grad_aligned, other_aligned, momentum_aligned, where_aligned;  // at the first whole group
};

struct SgdStep {
  SgdScalars<float> s;
  float scale;  // 1 / grad_scale
  bool clear;   // groups outside the mask are written +0
  bool skip;    // found_inf
};

// torch.optim.SGD on one element; multiplications and additions stay apart, as on the CPU.
__device__ __forceinline__ void sgd_step(float& param, float grad, float& buffer, const SgdStep& step, bool has_momentum) {
  const SgdScalars<float>& s = step.s;
  grad = __fmul_rn(grad, step.scale);
  if (s.maximize) grad = __fsub_rn(0.f, grad);
  if (s.weight_decay != 0) grad = __fadd_rn(grad, __fmul_rn(param, s.weight_decay));
  if (has_momentum) {
    buffer = s.is_first_step ? grad : __fadd_rn(__fmul_rn(buffer, s.momentum), __fmul_rn(grad, s.one_minus_dampening));
    grad = s.nesterov ? __fadd_rn(grad, __fmul_rn(buffer, s.momentum)) : buffer;
  }
  param = __fsub_rn(param, __fmul_rn(grad, s.lr));
}

template <SgdKind kind, int N>
__device__ __forceinline__ unsigned active_bits(const void* where, int i, bool aligned) {
  if (kind == SgdKind::bools) return bool_group<N>(static_cast<const uint8_t*>(where), i, aligned);
  if (kind == SgdKind::bits) return bit_group<N>(static_cast<const uint32_t*>(where), i);
  return (1u << N) - 1;
}

template <SgdKind kind, class G, int N>
__device__ __forceinline__ Group<G, N> load_grads(const G* grad, const void* where, int i, bool grad_aligned, bool where_aligned) {
  if constexpr (kind == SgdKind::gather32 || kind == SgdKind::gather64) {
    using I = std::conditional_t<kind == SgdKind::gather32, int32_t, int64_t>;
    const Group<I, N> index = load_group<I, N, Cache::stream>(static_cast<const I*>(where) + i, where_aligned);
    Group<G, N> grads;
#pragma unroll
    for (int k = 0; k < N; ++k) grads.at[k] = grad[index.at[k]];
    return grads;
  } else {
    return load_group<G, N, Cache::stream>(grad + i, grad_aligned);
  }
}

// What is to be projected out of a gradient; the default is nothing, and costs nothing.
struct NoProjection {
  static constexpr bool possible = false;
  static constexpr const void* other = nullptr;
  static constexpr float coefficient = 0;
};
struct Projection {
  static constexpr bool possible = true;
  const void* other;  // null: nothing
  float coefficient;
};

// U groups of N elements at the offsets `at` (negative: none): all masks are asked for first, then all data, then used.
template <SgdKind kind, bool projects, int N, int U, class P, class G>
__device__ __forceinline__ void update_groups(const SgdSpan<P, G>& x, const int (&at)[U], const SgdStep& step, bool grouped) {
  unsigned on[U];
  Group<P, N> p[U], v[U];
  Group<G, N> g[U], o[U];
#pragma unroll
  for (int u = 0; u < U; ++u) {
    on[u] = at[u] < 0 ? 0 : active_bits<kind, N>(x.where, at[u], grouped && x.where_aligned);
    if (step.s.invert && at[u] >= 0) on[u] ^= (1u << N) - 1;
  }
#pragma unroll
  for (int u = 0; u < U; ++u)
    if (on[u]) {
      g[u] = load_grads<kind, G, N>(x.grad, x.where, at[u], grouped && x.grad_aligned, grouped && x.where_aligned);
      p[u] = load_group<P, N>(x.param + at[u], grouped && x.param_aligned);
      if (projects && x.other) o[u] = load_group<G, N, Cache::stream>(x.other + at[u], grouped && x.other_aligned);
      if (x.momentum) v[u] = load_group<P, N>(x.momentum + at[u], grouped && x.momentum_aligned);
    }
#pragma unroll
  for (int u = 0; u < U; ++u) {
    if (at[u] < 0 || !(on[u] || step.clear)) continue;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      // Selected, not branched: neighbours differ. What is hidden goes back as the bits that were read, or as +0.
      const bool inside = on[u] >> k & 1;
      const P zero = from_float<P>(0.f);
      float param = to_float(p[u].at[k]), buffer = to_float(v[u].at[k]);
      float grad = to_float(g[u].at[k]);
      if (projects && x.other) grad = __fsub_rn(grad, __fmul_rn(to_float(o[u].at[k]), x.coefficient));
      sgd_step(param, grad, buffer, step, x.momentum != nullptr);
      p[u].at[k] = inside ? from_float<P>(param) : step.s.zero_outside ? zero : p[u].at[k];
      v[u].at[k] = inside ? from_float<P>(buffer) : step.s.zero_outside ? zero : v[u].at[k];
    }
    store_group(x.param + at[u], p[u], grouped && x.param_aligned);
    if (x.momentum) store_group(x.momentum + at[u], v[u], grouped && x.momentum_aligned);
  }
}

// One piece by the whole block. An unaligned head and a tail are peeled; a stream that is not aligned where param is
// moves element by element, the others keep their 16 bytes.
template <SgdKind kind, class P, class G, class Entry, class Out = NoProjection>
__device__ __forceinline__ void sgd_piece(const Entry& e, int64_t begin, int64_t end, const SgdStep& step, const Out& out = {}) {
  constexpr bool gathers = kind == SgdKind::gather32 || kind == SgdKind::gather64;
  constexpr int N = 16 / sizeof(P), U = gathers && N == 8 ? 1 : 2;  // eight gathers at a time are enough, and fit the registers
  constexpr int where_size = kind == SgdKind::gather64 ? 8 : kind == SgdKind::gather32 ? 4 : 1;
  const int count = static_cast<int>(end - begin);
  SgdSpan<P, G> x;
  x.param = static_cast<P*>(e.param) + begin;
  x.grad = static_cast<const G*>(e.grad) + (gathers ? 0 : begin);
  x.other = out.other ? static_cast<const G*>(out.other) + begin : nullptr;
  x.coefficient = out.coefficient;
  x.momentum = e.momentum ? static_cast<P*>(e.momentum) + begin : nullptr;
  x.where = static_cast<const char*>(e.where) + (kind == SgdKind::bits ? begin / 8 : begin * where_size);
  const int past = static_cast<int>((reinterpret_cast<uintptr_t>(x.param) & 15) / sizeof(P));
  const int head = min(past ? N - past : 0, count);
  const int groups = (count - head) / N;
  x.param_aligned = true;
  x.grad_aligned = is_aligned(x.grad + head, sizeof(G) * N);
  x.other_aligned = is_aligned(x.other + head, sizeof(G) * N);
  x.momentum_aligned = is_aligned(x.momentum + head, 16);
  x.where_aligned = is_aligned(static_cast<const char*>(x.where) + head * where_size, gathers ? 16 : 4);

  const int self = static_cast<int>(threadIdx.x);
  for (int j = self; j < groups; j += kThreads * U) {
    int at[U];
#pragma unroll
    for (int u = 0; u < U; ++u) at[u] = j + u * kThreads < groups ? head + (j + u * kThreads) * N : -1;
    update_groups<kind, Out::possible, N, U>(x, at, step, true);
  }
  const int loose = count - groups * N;  // head and tail: fewer than 2 N <= kThreads
  if (self < loose) {
    const int at[1] = {self < head ? self : self + groups * N};
    update_groups<kind, Out::possible, 1, 1>(x, at, step, false);
  }
}

// The three numbers that may live on the device are asked for together: they stand before every block's first piece.
__device__ __forceinline__ SgdStep read_step(const SgdOptions& o) {
  const float found_inf = o.found_inf ? *o.found_inf : 0.f, lr = o.lr ? *o.lr : o.scalars.lr, scale = o.grad_scale ? *o.grad_scale : 1.f;
  SgdStep step = {o.scalars, __fdiv_rn(1.f, scale), o.scalars.zero_outside && !o.assume_clean, found_inf != 0};
  step.s.lr = lr;
  return step;
}

}  // namespace sparsekern::cuda
