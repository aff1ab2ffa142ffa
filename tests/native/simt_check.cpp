// The emulator itself: collectives, barriers, shared memory, atomics, half types, and what it says of a deadlock.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "simt/simt.h"

namespace {

void require(bool holds, const char* what) {
  if (holds) return;
  std::printf("failed: %s\n", what);
  std::exit(1);
}

// Sum of a block by shuffles and shared memory, one atomic per block.
__global__ void sum_kernel(const int* in, int n, int* out) {
  __shared__ int partial[32];
  int sum = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += in[i];
  for (int step = 16; step; step /= 2) sum += __shfl_down_sync(~0u, sum, step);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x < 32) {
    sum = threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0;
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (threadIdx.x == 0) atomicAdd(out, sum);
  }
}

// Reverses a block through dynamic shared memory.
__global__ void reverse_kernel(const int* in, int* out) {
  SK_DYNAMIC_SHARED(int, box);
  box[threadIdx.x] = in[blockIdx.x * blockDim.x + threadIdx.x];
  __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = box[blockDim.x - 1 - threadIdx.x];
}

__global__ void collectives_kernel(unsigned* out) {
  const unsigned lane = threadIdx.x;
  const unsigned even = __ballot_sync(~0u, lane % 2 == 0);
  const unsigned same = __match_any_sync(~0u, static_cast<int>(lane / 8));
  unsigned half = 0;
  if (lane < 16) half = __reduce_add_sync(0xffffu, lane);  // a part of the warp
  else half = __reduce_max_sync(0xffff0000u, lane);
  const int any = __any_sync(~0u, lane == 31), all = __all_sync(~0u, lane < 31), up = __shfl_up_sync(~0u, static_cast<int>(lane), 1, 8);
  const int count = __syncthreads_count(lane < 5);
  out[lane] = even == 0x55555555u && same == 0xffu << lane / 8 * 8 && half == (lane < 16 ? 120u : 31u) && any && !all &&
              up == static_cast<int>(lane % 8 ? lane - 1 : lane) && count == 5 && __popc(even) == 16 && __ffs(8) == 4 && __clz(1) == 31;
}

__global__ void divergent_barrier_kernel() {
  if (threadIdx.x < 7) return;
  __syncthreads();
}

__global__ void divergent_shuffle_kernel() {
  if (threadIdx.x < 16) __shfl_sync(~0u, 1, 0);
  else __syncwarp();
}

template <class Fn>
void deadlocks(const char* words, Fn run) {
  try {
    run();
  } catch (const std::runtime_error& error) {
    return require(std::string(error.what()).find(words) != std::string::npos, error.what());
  }
  require(false, "a deadlock went by unseen");
}

void halves() {
  for (unsigned bits = 0; bits < 0x10000; ++bits) {
    const __half h = {static_cast<uint16_t>(bits)};
    const float x = __half2float(h);
    require(std::isnan(x) || __float2half_rn(x).bits == bits, "fp16 to fp32 and back");
    const float next = __half2float({static_cast<uint16_t>(bits + 1)});
    if ((bits & 0x7fff) < 0x7bff)  // a tie goes to the even neighbour
      require(__float2half_rn((x + next) / 2).bits == (bits & 1 ? bits + 1 : bits), "rounding to fp16");
    const float b = __bfloat162float({static_cast<uint16_t>(bits)});
    require(std::isnan(b) || __float2bfloat16_rn(b).bits == bits, "bf16 to fp32 and back");
  }
  require(__float2half_rn(65520.f).bits == 0x7c00 && __float2half_rn(65519.f).bits == 0x7bff, "overflow of fp16");
  require(__float2bfloat16_rn(1.00390625f).bits == 0x3f80 && __float2bfloat16_rn(1.01171875f).bits == 0x3f82, "ties of bf16");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) simt::shuffle = std::strtoull(argv[1], nullptr, 10);
  std::vector<int> in(10007), out(512);
  int expected = 0, sum = 0;
  for (size_t i = 0; i < in.size(); ++i) expected += in[i] = static_cast<int>(i % 101);
  SK_LAUNCH(sum_kernel, 5, 128, 0, nullptr, in.data(), 10007, &sum);
  require(sum == expected, "block sums");
  SK_LAUNCH(reverse_kernel, 2, 256, 256 * sizeof(int), nullptr, in.data(), out.data());
  for (int i = 0; i < 512; ++i) require(out[i] == in[i / 256 * 256 + 255 - i % 256], "dynamic shared memory");
  std::vector<unsigned> good(32);
  SK_LAUNCH(collectives_kernel, 1, 32, 0, nullptr, good.data());
  for (unsigned g : good) require(g, "collectives");
  deadlocks("from thread 0 has exited; from thread 7 waits at __syncthreads", [] { SK_LAUNCH(divergent_barrier_kernel, 1, 64, 0, nullptr); });
  deadlocks("from thread 16 waits at __syncwarp", [] { SK_LAUNCH(divergent_shuffle_kernel, 1, 32, 0, nullptr); });
  deadlocks("invalid configuration", [] { SK_LAUNCH(divergent_barrier_kernel, 0, 32, 0, nullptr); });
  halves();
  std::printf("ok\n");
}
