// What the standalone programs share: device arrays with guards around them, random values, timing on a GPU.
//   g++ -x c++ -std=c++17 -ffp-contract=off -I csrc <op>_check.cu     under the emulator of csrc/simt
//   nvcc -std=c++17 -I csrc <op>_check.cu                             on a GPU: for compute-sanitizer, ncu and --bench
// Arguments: a seed for the order of the emulated threads (0: in order), or --bench.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "cuda/launch.h"
#include "simt/simt.h"

#define REQUIRE_CUDA(call)                                                                  \
  do {                                                                                      \
    const int status = static_cast<int>(call);                                              \
    if (status != 0) {                                                                      \
      std::printf("%s: %s\n", #call, cudaGetErrorString(static_cast<cudaError_t>(status))); \
      std::exit(1);                                                                         \
    }                                                                                       \
  } while (0)

// A device array with `shift` elements before it and a guard of 64 bytes around it that must not change.
template <class T>
struct Device {
  static constexpr size_t guard = 64;
  unsigned char* base = nullptr;
  size_t shift, count;
  Device(const std::vector<T>& host, size_t shift) : shift(shift), count(host.size()) {
    std::vector<unsigned char> bytes(size(), 0xcd);
    std::copy_n(reinterpret_cast<const unsigned char*>(host.data()), count * sizeof(T), bytes.data() + offset());
    REQUIRE_CUDA(cudaMalloc(&base, size()));
    REQUIRE_CUDA(cudaMemcpy(base, bytes.data(), size(), cudaMemcpyHostToDevice));
  }
  Device(const Device&) = delete;
  ~Device() { cudaFree(base); }
  size_t offset() const { return guard + shift * sizeof(T); }
  size_t size() const { return offset() + count * sizeof(T) + guard; }
  T* get() const { return reinterpret_cast<T*>(base + offset()); }
  std::vector<T> read() const {
    std::vector<unsigned char> bytes(size());
    REQUIRE_CUDA(cudaMemcpy(bytes.data(), base, size(), cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < size(); ++i)
      if ((i < offset() || i >= offset() + count * sizeof(T)) && bytes[i] != 0xcd) {
        std::printf("a byte outside the array was written, at %ld of %zu elements\n", static_cast<long>(i) - static_cast<long>(offset()), count);
        std::exit(1);
      }
    std::vector<T> out(count);
    std::copy_n(bytes.data() + offset(), count * sizeof(T), reinterpret_cast<unsigned char*>(out.data()));
    return out;
  }
};

inline std::mt19937_64 draw(7);
inline float uniform() { return static_cast<float>(draw() % 20001) / 10000.f - 1.f; }

inline float widen(float x) { return x; }
inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
inline float widen(__half x) { return __half2float(x); }
inline void narrow(float x, float& out) { out = x; }
inline void narrow(float x, __nv_bfloat16& out) { out = __float2bfloat16_rn(x); }
inline void narrow(float x, __half& out) { out = __float2half_rn(x); }

template <class T>
std::vector<T> values(size_t n) {
  std::vector<T> out(n);
  for (T& x : out) narrow(uniform(), x);
  return out;
}

template <class T>
constexpr sparsekern::cuda::DType dtype_of = sizeof(T) == 4                   ? sparsekern::cuda::DType::f32
                                             : std::is_same<T, __half>::value ? sparsekern::cuda::DType::f16
                                                                              : sparsekern::cuda::DType::bf16;

// Whether to measure; otherwise takes the seed of the emulated threads' order.
inline bool wants_bench(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "--bench") == 0) return true;
#ifndef __CUDACC__
  if (argc > 1) simt::shuffle = std::strtoull(argv[1], nullptr, 10);
#endif
  return false;
}

#ifdef __CUDACC__
inline sparsekern::cuda::DeviceProps this_device() {
  cudaDeviceProp device;
  REQUIRE_CUDA(cudaGetDeviceProperties(&device, 0));
  return {device.multiProcessorCount, static_cast<int>(device.sharedMemPerBlockOptin), device.l2CacheSize};
}

// Median microseconds of 20 calls by events, after 5 that warm up.
template <class Fn>
float median_us(const Fn& fn) {
  cudaEvent_t start, stop;
  REQUIRE_CUDA(cudaEventCreate(&start));
  REQUIRE_CUDA(cudaEventCreate(&stop));
  std::vector<float> times;
  for (int k = 0; k < 25; ++k) {
    REQUIRE_CUDA(cudaEventRecord(start));
    REQUIRE_CUDA(fn());
    REQUIRE_CUDA(cudaEventRecord(stop));
    REQUIRE_CUDA(cudaEventSynchronize(stop));
    float ms;
    REQUIRE_CUDA(cudaEventElapsedTime(&ms, start, stop));
    if (k >= 5) times.push_back(ms * 1e3f);
  }
  std::sort(times.begin(), times.end());
  REQUIRE_CUDA(cudaEventDestroy(start));
  REQUIRE_CUDA(cudaEventDestroy(stop));
  return times[times.size() / 2];
}
#endif
