// What the kernels on sparse patterns share: reading one, searching, and the marks of a row: its columns as bits in shared memory with
// the number of marks before each word, so that a column's rank in its row is one lookup and a population count, whatever order the
// columns came in. No kernels here.
#pragma once
#include "cuda/collective.cuh"
#include "cuda/csr_rows.h"

namespace sparsekern::cuda {

__device__ __forceinline__ int64_t grid_thread() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ __forceinline__ int64_t grid_threads() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

// Uniform branch: two instantiations of everything would cost more than this.
__device__ __forceinline__ int64_t crow_at(const CsrView& p, int64_t r) {
  return p.wide ? static_cast<const int64_t*>(p.crow)[r] : static_cast<int64_t>(static_cast<const int32_t*>(p.crow)[r]);
}

// Where bucket r begins.
__device__ __forceinline__ Count begin_of(const Count* ends, int64_t r) { return r > 0 ? ends[r - 1] : 0; }

// The first i in [low, high) where `holds`, which stays true from there on, or `high`.
template <class Holds>
__device__ __forceinline__ int64_t first_where(int64_t low, int64_t high, const Holds& holds) {
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (holds(middle)) high = middle;
    else low = middle + 1;
  }
  return low;
}

// fn(load(i)) for i in [begin, end), by a whole block; four loads in flight a thread.
template <int threads, class Load, class Fn>
__device__ __forceinline__ void for_entries(int64_t begin, int64_t end, const Load& load, const Fn& fn) {
  constexpr int kFlight = 4;
  for (int64_t first = begin + static_cast<int>(threadIdx.x); first < end; first += kFlight * threads) {
    decltype(load(first)) here[kFlight];
#pragma unroll
    for (int k = 0; k < kFlight; ++k)
      if (first + k * threads < end) here[k] = load(first + k * threads);
#pragma unroll
    for (int k = 0; k < kFlight; ++k)
      if (first + k * threads < end) fn(here[k]);
  }
}

// ---- the marks of a row ----

constexpr int kMarkWords = 1024;
constexpr uint32_t kMarkColumns = 32 * kMarkWords, kNoColumn = ~0u;

// A window of kMarkColumns columns from `base` on. A row wider than that takes several windows, each from the first column that is left, so
// there are never more of them than entries.
struct RowMarks {
  uint32_t bits[kMarkWords], before[kMarkWords];
  uint32_t warps[32];
  uint32_t high, next;  // one past the highest mark, from base; the lowest column behind the window
};

// The same two numbers of one thread.
struct MarkRange {
  uint32_t high = 0, next = kNoColumn;
};

// At the start of a kernel; use_marks leaves them clear again.
__device__ __forceinline__ void clear_marks(RowMarks& marks, int words) {
  for (int w = static_cast<int>(threadIdx.x); w < words; w += static_cast<int>(blockDim.x)) marks.bits[w] = 0;
}

__device__ __forceinline__ void begin_window(RowMarks& marks) {
  if (threadIdx.x == 0) marks.high = 0, marks.next = kNoColumn;
  __syncthreads();
}

// kNoColumn marks nothing.
__device__ __forceinline__ void mark(RowMarks& marks, uint32_t base, uint32_t column, MarkRange& range) {
  if (column < base) return;
  const uint32_t at = column - base;
  if (at >= kMarkColumns) {
    range.next = min(range.next, column);
  } else {
    atomicOr(&marks.bits[at >> 5], 1u << (at & 31));
    range.high = max(range.high, at + 1);
  }
}

// Behind the last mark of a window; returns the number of words in use. All threads.
__device__ __forceinline__ int end_marks(RowMarks& marks, const MarkRange& range) {
  const uint32_t high = __reduce_max_sync(kAllLanes, range.high), next = __reduce_min_sync(kAllLanes, range.next);
  if (lane_id() == 0) {
    atomicMax(&marks.high, high);
    atomicMin(&marks.next, next);
  }
  __syncthreads();
  return static_cast<int>((marks.high + 31) >> 5);
}

// Counts the marks before each word; returns how many there are. All threads, behind a barrier that follows the last change.
template <int threads>
__device__ __forceinline__ uint32_t rank_marks(RowMarks& marks, int words) {
  uint32_t sum = 0;
  for (int first = 0; first < words; first += threads) {
    const int w = first + static_cast<int>(threadIdx.x);
    const uint32_t here = w < words ? static_cast<uint32_t>(__popc(marks.bits[w])) : 0;
    uint32_t total;
    const uint32_t before = sum + block_exclusive_sum<threads>(here, marks.warps, total);
    if (w < words) marks.before[w] = before;
    sum += total;
  }
  __syncthreads();
  return sum;
}

// The number of marks before a column of the window, counted from base.
__device__ __forceinline__ uint32_t rank_of(const RowMarks& marks, uint32_t at) {
  return marks.before[at >> 5] + static_cast<uint32_t>(__popc(marks.bits[at >> 5] & ((1u << (at & 31)) - 1)));
}

// Where the next window begins, or kNoColumn; the marks are clear. All threads.
__device__ __forceinline__ uint32_t end_window(RowMarks& marks, int words) {
  const uint32_t next = marks.next;
  __syncthreads();
  clear_marks(marks, words);
  return next == kNoColumn ? kNoColumn : next & ~31u;
}

}  // namespace sparsekern::cuda
