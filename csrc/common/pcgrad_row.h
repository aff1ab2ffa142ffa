// Sequential PCGrad on the table of products: every projected gradient stays in the span of the originals. Host and device.
#pragma once
#include <cmath>
#include <cstdint>

#ifndef SK_HOST_DEVICE
#if defined(__CUDACC__)
#define SK_HOST_DEVICE __host__ __device__
#else
#define SK_HOST_DEVICE
#endif
#endif

namespace sparsekern {

constexpr int kMaxTasks = 64;

// Writes to c[k * stride] how much of gradient k is in the projected gradient of task `self`, which visits the tasks order[0],
// order[1], ...; gram is [tasks, tasks]. What names no other task is passed over, and so is a product that is NaN or infinite.
SK_HOST_DEVICE inline void project_row(const double* gram, int tasks, const int64_t* order, int self, double* c, int stride) {
  for (int k = 0; k < tasks; ++k) c[k * stride] = k == self;
  for (int s = 0; s < tasks - 1; ++s) {
    const int64_t j = order[s];
    if (j < 0 || j >= tasks || j == self) continue;
    double d = 0;
    // What is not in the sum must not reach it: 0 times a NaN is NaN.
    for (int k = 0; k < tasks; ++k)
      if (c[k * stride] != 0) d += c[k * stride] * gram[k * tasks + j];
    const double q = gram[j * tasks + j];
    if (d < 0 && d > -INFINITY && q > 0 && q < INFINITY) c[j * stride] -= d / q;
  }
}

}  // namespace sparsekern
