// SK_LAUNCH starts a CUDA kernel under nvcc. Under a plain C++ compiler this header runs the same kernel source on the
// CPU: one fiber per CUDA thread, blocks one after another, so that index arithmetic, tails, masks and barriers are
// tested where there is no GPU. A barrier that some thread never reaches is reported instead of hanging.
// It cannot show data races (a fixed, or by `simt::shuffle` a random, order of fibers helps only a little), memory-model
// faults or speed. Not emulated: inline PTX, tensor cores, cooperative groups, __activemask, more than one stream.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define SK_LAUNCH(kernel, grid, block, smem, stream, ...) (kernel)<<<(grid), (block), (smem), (stream)>>>(__VA_ARGS__)
// Dynamic shared memory as an array of T; one use per kernel.
#define SK_DYNAMIC_SHARED(T, name)                                   \
  extern __shared__ __align__(16) unsigned char sk_dynamic_shared[]; \
  T* name = reinterpret_cast<T*>(sk_dynamic_shared)
#else

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "simt/simt_types.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static  // one block runs at a time
#define __align__(n) alignas(n)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace simt {

inline uint64_t shuffle = 0;        // not 0: fibers run in a random order drawn from this seed
constexpr size_t kStack = 1 << 18;  // a by-value table of 32 KB lives on it

struct Fiber {
  enum State { ready, at_block, at_warp, done };
  ucontext_t context;
  void* stack = nullptr;
  uint3 thread;
  State state;
  unsigned mask;     // at_warp: who takes part
  const char* what;  // the barrier's name
};

struct Machine {
  std::vector<Fiber> fibers;
  size_t live = 0, running = 0;  // threads of this block; the one that runs
  ucontext_t scheduler;
  std::function<void()> body;
  std::exception_ptr failure;
  std::vector<unsigned char> shared;
  std::vector<int> votes;
  std::vector<unsigned char> slots;  // 16 bytes per thread for warp exchanges

  static Machine& get() {
    static Machine machine;
    return machine;
  }

  static void entry() {
    Machine& m = get();
    try {
      m.body();
    } catch (...) {
      m.failure = std::current_exception();
    }
    m.fibers[m.running].state = Fiber::done;
  }

  void prepare(size_t threads) {
    const size_t before = fibers.size();
    if (threads > before) fibers.resize(threads);
    for (size_t i = before; i < fibers.size(); ++i) {
      fibers[i].stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (fibers[i].stack == MAP_FAILED) throw std::bad_alloc();
    }
    live = threads;
    votes.assign(threads, 0);
    slots.assign(threads * 16, 0);
    for (size_t i = 0; i < threads; ++i) {
      Fiber& f = fibers[i];
      getcontext(&f.context);
      f.context.uc_stack.ss_sp = f.stack;
      f.context.uc_stack.ss_size = kStack;
      f.context.uc_link = &scheduler;
      makecontext(&f.context, reinterpret_cast<void (*)()>(&Machine::entry), 0);
      const unsigned n = static_cast<unsigned>(i);
      f.thread = {n % blockDim.x, n / blockDim.x % blockDim.y, n / (blockDim.x * blockDim.y)};
      f.state = Fiber::ready;
    }
  }

  void wait(Fiber::State state, unsigned mask, const char* what) {
    Fiber& f = fibers[running];
    f.state = state;
    f.mask = mask;
    f.what = what;
    swapcontext(&f.context, &scheduler);
  }

  // Lets go those whose barrier is complete; false when nobody could move.
  bool release() {
    bool moved = false, all_at_block = true;
    for (size_t i = 0; i < live; ++i) {
      all_at_block &= fibers[i].state == Fiber::at_block;
      if (fibers[i].state != Fiber::at_warp) continue;
      const size_t warp = i / 32 * 32;
      bool complete = true;
      for (size_t lane = 0; lane < 32 && warp + lane < live; ++lane)
        if (fibers[i].mask >> lane & 1) {
          const Fiber& other = fibers[warp + lane];
          complete &= other.state == Fiber::at_warp && other.mask == fibers[i].mask && std::strcmp(other.what, fibers[i].what) == 0;
        }
      if (!complete) continue;
      const unsigned mask = fibers[i].mask;
      for (size_t lane = 0; lane < 32 && warp + lane < live; ++lane)
        if (mask >> lane & 1) fibers[warp + lane].state = Fiber::ready;
      moved = true;
    }
    if (all_at_block)
      for (size_t i = 0; i < live; ++i) fibers[i].state = Fiber::ready;
    return moved || all_at_block;
  }

  [[noreturn]] void deadlock() const {
    std::string text =
        "deadlock in block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " + std::to_string(blockIdx.z) + "):";
    std::string last;
    for (size_t i = 0; i < live; ++i) {
      const Fiber& f = fibers[i];
      const std::string where = f.state == Fiber::done ? "has exited" : std::string("waits at ") + f.what;
      if (where != last) text += " from thread " + std::to_string(i) + " " + where + ";";
      last = where;
    }
    throw std::runtime_error(text);
  }

  void run_block() {
    prepare(static_cast<size_t>(blockDim.x) * blockDim.y * blockDim.z);
    std::vector<size_t> order(live);
    std::iota(order.begin(), order.end(), 0);
    for (;;) {
      if (shuffle)
        for (size_t i = live; i > 1; --i) {
          shuffle = shuffle * 6364136223846793005u + 1442695040888963407u;
          std::swap(order[i - 1], order[(shuffle >> 33) % i]);
        }
      size_t finished = 0;
      for (size_t i : order) {
        if (fibers[i].state == Fiber::ready) {
          running = i;
          threadIdx = fibers[i].thread;
          swapcontext(&scheduler, &fibers[i].context);
          if (failure) std::rethrow_exception(std::exchange(failure, nullptr));
        }
        finished += fibers[i].state == Fiber::done;
      }
      if (finished == live) return;
      const bool any_ready = std::any_of(fibers.begin(), fibers.begin() + live, [](const Fiber& f) { return f.state == Fiber::ready; });
      if (!any_ready && !release()) deadlock();
    }
  }
};

inline void launch(dim3 grid, dim3 block, size_t shared_bytes, std::function<void()> body) {
  Machine& m = Machine::get();
  const size_t threads = static_cast<size_t>(block.x) * block.y * block.z;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || threads == 0 || threads > 1024)
    throw std::runtime_error("invalid configuration: a grid of " + std::to_string(grid.x) + " blocks of " + std::to_string(threads) + " threads");
  gridDim = grid;
  blockDim = block;
  m.body = std::move(body);
  m.shared.assign(shared_bytes + 16, 0xa5);  // what a kernel forgets to initialise shows
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        m.run_block();
      }
}

inline void* dynamic_shared() {
  auto address = reinterpret_cast<uintptr_t>(Machine::get().shared.data());
  return reinterpret_cast<void*>((address + 15) & ~uintptr_t(15));
}

inline unsigned lane() { return static_cast<unsigned>(Machine::get().running) & 31; }

// Every lane of `mask` gives a value; fn(values, mask) sees them all.
template <class T, class Fn>
auto exchange(unsigned mask, T value, const char* what, Fn fn) {
  static_assert(sizeof(T) <= 16);
  Machine& m = Machine::get();
  if (!(mask >> lane() & 1)) throw std::runtime_error(std::string(what) + ": the calling lane is not in its own mask");
  const size_t warp = m.running / 32 * 32;
  std::memcpy(&m.slots[m.running * 16], &value, sizeof(T));
  m.wait(Fiber::at_warp, mask, what);
  T values[32] = {};
  for (size_t k = 0; k < 32 && warp + k < m.live; ++k) std::memcpy(&values[k], &m.slots[(warp + k) * 16], sizeof(T));
  m.wait(Fiber::at_warp, mask, what);  // nobody writes again before all have read
  return fn(values, warp + 32 <= m.live ? mask : mask & ((1u << (m.live - warp)) - 1));
}

inline int block_count(int predicate, const char* what) {
  Machine& m = Machine::get();
  m.votes[m.running] = predicate != 0;
  m.wait(Fiber::at_block, 0, what);
  const int count = std::accumulate(m.votes.begin(), m.votes.end(), 0);
  m.wait(Fiber::at_block, 0, what);
  return count;
}

}  // namespace simt

#define SK_LAUNCH(kernel, grid, block, smem, stream, ...) ((void)(stream), simt::launch((grid), (block), (smem), [&] { (kernel)(__VA_ARGS__); }))
#define SK_DYNAMIC_SHARED(T, name) T* name = static_cast<T*>(simt::dynamic_shared())

#include "simt/simt_intrinsics.h"
#endif
