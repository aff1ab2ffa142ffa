// How a list of tensors is laid over a persistent grid. Plain host arithmetic, free of CUDA and torch, so that it is
// tested by itself; `piece_at` also runs in the kernels.
//
// A launcher of this room takes raw pointers, sizes, scalars, device properties and a stream, and returns a status. It
// never allocates, synchronises or reads device memory, so every launch can be captured in a CUDA graph. One that needs
// scratch memory takes `void* workspace` and has a pure `<op>_workspace_bytes` beside it; the binding allocates.
#pragma once
#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#define SK_HOST_DEVICE __host__ __device__
#else
#define SK_HOST_DEVICE
#endif

typedef struct CUstream_st* cudaStream_t;  // as cuda_runtime.h has it

namespace sparsekern::cuda {

enum class DType : int8_t { f32, bf16, f16 };

// What launchers need to know of a device; the binding asks once per device.
struct DeviceProps {
  int sms;
  int shared_bytes = 227 * 1024;  // the most that a block may ask for
  int l2_bytes = 50 << 20;
};

constexpr size_t kParameterBytes = 32764;  // of a kernel: CUDA 12.1 and later, sm_70 and later
constexpr int kThreads = 256;

// Tensors are cut in pieces of `piece` elements. Whole pieces come first, all tensors' in order, then one remainder per
// tensor (it may be empty). Block b does pieces b, b + grid, ...: whole pieces keep the blocks level, and the remainders
// fill the gap behind them.
struct ListPlan {
  int piece = 0, grid = 0;
  int64_t whole = 0, pieces = 0;
};

struct Piece {
  int tensor;
  int64_t begin, end;
};

// Elements that cost as much as starting a piece (table look-up, pipeline fill): a guess until measured. It only sways the
// choice between piece sizes.
constexpr int64_t kPieceCost = 64;

// The plan with pieces of a given size, a multiple of 1024: every thread has a 16-byte group, and packed mask words never
// straddle two pieces. Entries have `numel`; writes each one's `first`, the number of its first whole piece.
template <class Entry>
ListPlan plan_pieces(Entry* entries, size_t count, const DeviceProps& props, int blocks_per_sm, int piece) {
  const int64_t slots = static_cast<int64_t>(props.sms) * blocks_per_sm;
  ListPlan plan;
  plan.piece = piece;
  for (size_t t = 0; t < count; ++t) {
    entries[t].first = static_cast<int32_t>(plan.whole);
    plan.whole += entries[t].numel / piece;
  }
  plan.pieces = plan.whole + static_cast<int64_t>(count);
  plan.grid = static_cast<int>(plan.pieces < slots ? plan.pieces : slots);
  return plan;
}

// The plan with the piece size that loads the longest block least.
template <class Entry>
ListPlan plan_list(Entry* entries, size_t count, const DeviceProps& props, int blocks_per_sm) {
  const int64_t slots = static_cast<int64_t>(props.sms) * blocks_per_sm;
  int best = 0;
  int64_t best_cost = 0;
  for (int piece = 8192; piece >= 1024; piece -= 1024) {
    int64_t pieces = static_cast<int64_t>(count);
    for (size_t t = 0; t < count; ++t) pieces += entries[t].numel / piece;
    const int64_t cost = (pieces + slots - 1) / slots * (piece + kPieceCost);  // of the longest block
    if (best == 0 || cost < best_cost) {
      best_cost = cost;
      best = piece;
    }
  }
  return plan_pieces(entries, count, props, blocks_per_sm, best);
}

// Invariant: 0 <= k < plan.pieces. Of tensors that share a `first`, only the last one has whole pieces.
template <class Entry>
SK_HOST_DEVICE inline Piece piece_at(const Entry* entries, const ListPlan& plan, int64_t k) {
  if (k >= plan.whole) {
    const int tensor = static_cast<int>(k - plan.whole);
    const int64_t numel = entries[tensor].numel;
    return {tensor, numel - numel % plan.piece, numel};
  }
  int low = 0, high = static_cast<int>(plan.pieces - plan.whole);  // the last entry with first <= k is in [low, high)
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (entries[middle].first <= k) low = middle;
    else high = middle;
  }
  const int64_t begin = (k - entries[low].first) * plan.piece;
  return {low, begin, begin + plan.piece};
}

// A list longer than one launch's parameters hold is split evenly: a second launch costs less than a table in device
// memory that must be cached, refreshed and kept alive under a CUDA graph.
template <class Entry, class Fn>
int each_launch(Entry* entries, size_t count, size_t capacity, const Fn& fn) {
  const size_t launches = (count + capacity - 1) / capacity;
  for (size_t n = 0; n < launches; ++n) {
    const size_t begin = count * n / launches, end = count * (n + 1) / launches;
    if (const int status = fn(entries + begin, end - begin)) return status;
  }
  return 0;
}

}  // namespace sparsekern::cuda
