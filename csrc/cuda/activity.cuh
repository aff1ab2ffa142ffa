// out[f] = sum over positions b of |x[b, f]|, or of s_b x[b, f] with s_b = +-1 from Philox; under a window one sum per tap.
// A block sums a chunk of at most 4096 positions for a block of features in fp32, and a second kernel adds the chunks in
// order in fp64. Features side by side: a thread has 16 bytes of them and walks down the positions. Otherwise a warp has
// one feature and lies along the positions. Taps are offsets, three sums at a time; nothing is unfolded.
// Bytes: x once, and 1 / chunk of it for the partial sums: bandwidth-bound. A window reads x once from memory and its taps
// from the caches, R S / (stride_h stride_w) loads per element: 3 x 3 costs about twice the bytes' time.
// State: compiled for sm_80 and sm_90a and run under the emulator of csrc/simt; not yet run on a GPU, no time measured.
//
// budget: activity_rows_kernel 128
// budget: activity_rows_kernel<float 64
// budget: activity_lines_kernel 80
// budget: activity_lines_kernel<float 64
// budget: activity_sum_kernel 40
// promise: activity_rows_kernel LDG.E.128 no-fp64
// promise: activity_lines_kernel no-fp64
#pragma once
#include "common/philox.h"
#include "cuda/activity.h"
#include "cuda/collective.cuh"
#include "cuda/vector_io.cuh"

namespace sparsekern::cuda {

// Of 64 registers; eight halves need 80, and 128 under three taps.
template <class T, int taps>
constexpr int kActivityBlocksPerSm = sizeof(T) == 4 ? 4
                                     : taps == 1    ? 3
                                                    : 2;
constexpr int kWindowTaps = 3, kMostPositions = 4096;
constexpr int kSignWords = kMostPositions / 32 + 8;  // whole blocks of 128 at both ends; a group of signs may touch one more

// The sign bits of positions begin .. begin + count, by all threads; returns the place of the first bit.
__device__ __forceinline__ int load_signs(const ActivityArgs& a, int64_t begin, int count, uint32_t* signs) {
  if (!a.seed) return 0;
  const int64_t first = (a.offset + begin) >> 7;
  const int blocks = static_cast<int>(((a.offset + begin + count - 1) >> 7) - first) + 1;
  for (int i = static_cast<int>(threadIdx.x); i < blocks; i += kThreads) {
    const Words4 words = sign_words(static_cast<uint64_t>(*a.seed), static_cast<uint64_t>(first + i));
#pragma unroll
    for (int k = 0; k < 4; ++k) signs[4 * i + k] = words.v[k];
  }
  __syncthreads();
  return static_cast<int>((a.offset + begin) & 127);
}

// One or N signs from bit `at` on, as bits; none are set without a seed.
template <int N>
__device__ __forceinline__ unsigned signs_at(const ActivityArgs& a, const uint32_t* signs, int at) {
  if (!a.seed) return 0;
  const uint32_t* word = signs + (at >> 5);
  if (N == 1) return *word >> (at & 31);
  return static_cast<unsigned>((word[0] | static_cast<uint64_t>(word[1]) << 32) >> (at & 31));
}

// |x|, or x with its sign bit flipped where bit `k` of `signs` says so.
template <class T>
__device__ __forceinline__ float term(const ActivityArgs& a, T x, unsigned signs, int k) {
  const unsigned bits = __float_as_uint(to_float(x));
  return __uint_as_float(a.seed ? bits ^ (signs >> k) << 31 : bits & 0x7fffffffu);
}

struct Position {
  int64_t n;
  int h, w;
};

template <int taps>
__device__ __forceinline__ Position position_of(const ActivityArgs& a, int64_t b) {
  const int64_t line = b / a.out_w;
  const int w = static_cast<int>(b - line * a.out_w);
  if (taps == 1) return {line, 0, w};
  return {line / a.out_h, static_cast<int>(line % a.out_h), w};
}

// Both smaller than a whole image in h and w.
template <int taps>
__device__ __forceinline__ void advance(const ActivityArgs& a, Position& p, const Position& by) {
  p.n += by.n;
  p.w += by.w;
  const bool carry = p.w >= a.out_w;
  if (carry) p.w -= a.out_w;
  if (taps == 1) {
    p.n += carry;
    return;
  }
  p.h += by.h + carry;
  if (p.h >= a.out_h) {
    p.h -= a.out_h;
    ++p.n;
  }
}

// Where a tap reads at an output: the element's offset without its feature, or -1 in the padding.
template <int taps>
__device__ __forceinline__ int64_t place(const ActivityArgs& a, const Position& p, int tap) {
  if (taps == 1) return p.n * a.image + p.w * a.step;
  const int r = tap / a.kernel_w, s = tap - r * a.kernel_w;
  const int h = p.h * a.stride_h - a.padding_h + r * a.dilation_h, w = p.w * a.stride_w - a.padding_w + s * a.dilation_w;
  const bool inside =
      tap < a.taps && static_cast<unsigned>(h) < static_cast<unsigned>(a.height) && static_cast<unsigned>(w) < static_cast<unsigned>(a.width);
  return inside ? p.n * a.image + h * a.row + w * a.step : -1;
}

// `taps` at a time: 1 without a window.
template <class T, int taps>
__global__ void __launch_bounds__(kThreads, kActivityBlocksPerSm<T, taps>)
    activity_rows_kernel(const __grid_constant__ ActivityArgs a, const __grid_constant__ ActivityPlan plan, float* partials) {
  constexpr int N = 16 / sizeof(T), U = taps == 1 ? 4 : 1;
  __shared__ uint32_t signs[kSignWords];
  __shared__ float sums[N * kThreads];
  const int across = plan.across, down = kThreads / across, self = static_cast<int>(threadIdx.x);
  const int blocks = (a.features + across * N - 1) / (across * N);
  const int64_t chunk = blockIdx.x / blocks, begin = chunk * plan.chunk;
  const int count = static_cast<int>(min(int64_t{plan.chunk}, a.positions - begin)), first = static_cast<int>(blockIdx.x % blocks) * across * N;
  const int f = first + self % across * N, live = min(a.features - f, N);
  const T* x = static_cast<const T*>(a.x) + f;
  const bool aligned = is_aligned(a.x, 16) && a.image % N == 0 && a.row % N == 0 && a.step % N == 0;
  const int shift = load_signs(a, begin, count, signs);
  const Position by = position_of<taps>(a, down);
  for (int tap = 0; tap < a.taps; tap += taps) {
    float sum[taps][N] = {};
    Position p = position_of<taps>(a, begin + self / across);
    for (int b = self / across; b < count && live > 0; b += down * U) {
      Group<T, N> group[U][taps];
      unsigned negative[U];
#pragma unroll
      for (int u = 0; u < U; ++u) {
        const bool valid = b + u * down < count;
        negative[u] = valid ? signs_at<1>(a, signs, shift + b + u * down) : 0;
#pragma unroll
        for (int t = 0; t < taps; ++t) {
          const int64_t at = valid ? place<taps>(a, p, tap + t) : -1;
          group[u][t] = Group<T, N>{};
          if (at < 0) continue;
          if (live == N) {
            group[u][t] = load_group<T, N>(x + at, aligned);
          } else {
#pragma unroll
            for (int k = 0; k < N; ++k)
              if (k < live) group[u][t].at[k] = x[at + k];
          }
        }
        advance<taps>(a, p, by);
      }
#pragma unroll
      for (int u = 0; u < U; ++u)
#pragma unroll
        for (int t = 0; t < taps; ++t)
#pragma unroll
          for (int k = 0; k < N; ++k) sum[t][k] = __fadd_rn(sum[t][k], term(a, group[u][t].at[k], negative[u] & 1, 0));
    }
    // Down the block in order, the features of a thread apart so that no two threads meet in a bank.
#pragma unroll
    for (int t = 0; t < taps; ++t) {
      __syncthreads();
#pragma unroll
      for (int k = 0; k < N; ++k) sums[k * kThreads + self] = sum[t][k];
      __syncthreads();
      for (int i = self; i < across * N; i += kThreads) {
        const int k = i / across, feature = first + i % across * N + k;
        float total = sums[k * kThreads + i % across];
        for (int d = 1; d < down; ++d) total = __fadd_rn(total, sums[k * kThreads + d * across + i % across]);
        if (feature < a.features && tap + t < a.taps) partials[(chunk * a.features + feature) * a.taps + tap + t] = total;
      }
    }
  }
}

template <class T, int taps>
__global__ void __launch_bounds__(kThreads, kActivityBlocksPerSm<T, taps>)
    activity_lines_kernel(const __grid_constant__ ActivityArgs a, const __grid_constant__ ActivityPlan plan, float* partials) {
  constexpr int N = taps == 1 ? 16 / sizeof(T) : 1, U = 2, warps = kThreads / 32;  // positions side by side of a lane
  __shared__ uint32_t signs[kSignWords];
  const int blocks = (a.features + warps - 1) / warps;
  const int64_t chunk = blockIdx.x / blocks, begin = chunk * plan.chunk;
  const int count = static_cast<int>(min(int64_t{plan.chunk}, a.positions - begin));
  const int f = static_cast<int>(blockIdx.x % blocks) * warps + warp_id();
  const int shift = load_signs(a, begin, count, signs);
  if (f >= a.features) return;
  const T* x = static_cast<const T*>(a.x) + f * a.feature;
  // No group crosses into another line, nor past the last position, which may lie inside one (a line of more than 2^30).
  const bool whole = N > 1 && a.step == 1 && a.out_w % N == 0 && a.positions % N == 0;
  const bool aligned = is_aligned(x, 16) && a.image % N == 0;
  const Position by = position_of<taps>(a, 32 * N), one = position_of<taps>(a, 1);
  for (int tap = 0; tap < a.taps; tap += taps) {
    float sum[taps] = {};
    Position p = position_of<taps>(a, begin + lane_id() * N);
    for (int b = lane_id() * N; b < count; b += 32 * N * U) {
      Group<T, N> group[U][taps];
      unsigned negative[U];
#pragma unroll
      for (int u = 0; u < U; ++u) {
        const int i = b + u * 32 * N;
        negative[u] = i < count ? signs_at<N>(a, signs, shift + i) : 0;
#pragma unroll
        for (int t = 0; t < taps; ++t) {
          group[u][t] = Group<T, N>{};
          if (i >= count) continue;
          if (whole) {
            group[u][t] = load_group<T, N>(x + place<taps>(a, p, tap + t), aligned);
          } else {
            Position each = p;
#pragma unroll
            for (int k = 0; k < N; ++k) {
              const int64_t at = place<taps>(a, each, tap + t);
              if (at >= 0 && i + k < count) group[u][t].at[k] = x[at];
              if (N > 1) advance<taps>(a, each, one);
            }
          }
        }
        advance<taps>(a, p, by);
      }
#pragma unroll
      for (int u = 0; u < U; ++u)
#pragma unroll
        for (int t = 0; t < taps; ++t)
#pragma unroll
          for (int k = 0; k < N; ++k) sum[t] = __fadd_rn(sum[t], term(a, group[u][t].at[k], negative[u], k));
    }
#pragma unroll
    for (int t = 0; t < taps; ++t) {
      const float total = warp_sum(sum[t]);
      if (lane_id() == 0 && tap + t < a.taps) partials[(chunk * a.features + f) * a.taps + tap + t] = total;
    }
  }
}

// 32 outputs of a block; warp w adds the chunks w, w + 8, ... and the warps' sums are added in order.
__global__ void __launch_bounds__(kThreads) activity_sum_kernel(const float* partials, float* out, int64_t outputs, int64_t chunks) {
  constexpr int warps = kThreads / 32;
  __shared__ double sums[warps][32];
  const int64_t at = blockIdx.x * int64_t{32} + lane_id();
  double sum = 0;
  for (int64_t chunk = warp_id(); chunk < chunks; chunk += warps) sum += at < outputs ? partials[chunk * outputs + at] : 0.f;
  sums[warp_id()][lane_id()] = sum;
  __syncthreads();
  if (warp_id() != 0 || at >= outputs) return;
  for (int w = 1; w < warps; ++w) sum += sums[w][lane_id()];
  out[at] = static_cast<float>(sum);
}

}  // namespace sparsekern::cuda
