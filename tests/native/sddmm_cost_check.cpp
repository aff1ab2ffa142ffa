// How a sampled product is cut, and which way it goes, without any kernel.
#include <cstdio>
#include <cstdlib>

#include "cuda/sddmm_cost.h"

using namespace sparsekern::cuda;

namespace {

void require(bool holds, const char* what) {
  if (holds) return;
  std::printf("failed: %s\n", what);
  std::exit(1);
}

SddmmShape shape(int64_t rows, int64_t cols, int64_t n, double density, int size, bool by_columns = false, bool sorted = true) {
  return {rows, cols, n, static_cast<int64_t>(density * rows * cols), size, by_columns, by_columns, sorted};
}

// The density below which the gather is the cheaper way.
double crossover(int64_t side, int64_t n, int size, bool by_columns = false, bool sorted = true) {
  double low = 0, high = 1;
  for (int k = 0; k < 40; ++k) {
    const double middle = (low + high) / 2;
    (sddmm_way(shape(side, side, n, middle, size, by_columns, sorted)) == SddmmWay::gather ? low : high) = middle;
  }
  return low;
}

}  // namespace

int main(int argc, char**) {
  if (argc > 1)
    for (const int size : {2, 4})
      for (const int64_t n : {32, 128, 512, 1024, 4096})
        std::printf("%d bytes, n %ld: rows %.2f %%, columns %.2f %%, list %.2f %%\n", size, static_cast<long>(n), 100 * crossover(4096, n, size),
                    100 * crossover(4096, n, size, true), 100 * crossover(4096, n, size, false, false));
  std::printf("ok\n");
}
