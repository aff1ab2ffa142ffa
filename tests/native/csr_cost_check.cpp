// The cost model of the CSR products and the plan of the staged one: host code.
#include "cuda/csr_cost.h"

#include <initializer_list>

#include "require.h"

using namespace sparsekern::cuda;

namespace {

const DeviceProps kH200 = {132, 227 * 1024, 50 << 20};

SpmmShape shape(int64_t rows, int64_t cols, int64_t n, double sparsity, bool half, bool tf32 = true) {
  const int size = half ? 2 : 4;
  return {rows, cols, n, static_cast<int64_t>((1 - sparsity) * rows * cols), size, size, half, tf32, false, false};
}

// The sparsity from which on the dense product is not taken any more.
double crossover(int64_t side, int64_t n, bool half, bool tf32, const SpmmRates& rates) {
  for (double sparsity = 0.5; sparsity < 0.9999; sparsity += 0.001)
    if (choose_spmm(shape(side, side, n, sparsity, half, tf32), kH200, true, rates) != SpmmAlgo::densify) return sparsity;
  return 1;
}

void check_plans() {
  for (const int size : {2, 4})
    for (const int shared : {8192, 99 * 1024, 163 * 1024, 227 * 1024})
      for (const int64_t rows : {1, 7, 64, 255, 256, 257, 512, 1000, 4096, 100000})
        for (const int64_t cols : {0, 1, 8, 60, 100, 907, 1815, 1816, 4096, 11008, 1000000})
          for (const int64_t n : {1, 63, 64, 65, 512, 4096}) {
            const StagedPlan p = plan_staged(rows, cols, n, size, {132, shared});
            REQUIRE(p.shared_bytes <= shared, "%ld bytes", static_cast<long>(p.shared_bytes));
            REQUIRE(p.threads % 32 == 0 && p.threads >= 64 && p.threads <= kStagedThreads, "%d", p.threads);
            REQUIRE(p.tile_rows % 8 == 0 && static_cast<int64_t>(p.tile_rows) * p.tiles >= cols, "%d rows, %d tiles", p.tile_rows, p.tiles);
            REQUIRE(p.tiles == 1 || p.buffers == 2, "%d tiles, %d buffers", p.tiles, p.buffers);
            REQUIRE(static_cast<int64_t>(p.tile_rows) * (p.tiles - 1) < cols || p.tiles == 1, "an empty tile of %d, %d tiles", p.tile_rows, p.tiles);
            REQUIRE(static_cast<int64_t>(p.row_blocks) * p.threads / 4 * p.rows_per_group >= rows, "%d row blocks", p.row_blocks);
            REQUIRE(p.panels * kPanelBytes >= n * size, "%ld panels", static_cast<long>(p.panels));
          }
  const StagedPlan real = plan_staged(4096, 4096, 512, 2, kH200);  // 8 panels of 16 blocks fill the device
  REQUIRE(real.panels * real.row_blocks == 128 && real.rows_per_group == 1, "%ld blocks", static_cast<long>(real.panels * real.row_blocks));
  REQUIRE(plan_staged(4096, 4096, 4096, 2, kH200).rows_per_group == 2, "one row");
}

// At the rates of the hardware: density 29.7 / 788 for 16-bit types, and the same against TF32 (twice the bytes, half the rate).
void check_break_even() {
  SpmmRates ideal;
  ideal.scalar_share = ideal.staged_share = ideal.tile_share = ideal.fill_share = 1;
  ideal.launch = 0;
  const double half = crossover(8192, 32768, true, true, ideal), tf32 = crossover(8192, 32768, false, true, ideal);
  REQUIRE(half > 0.955 && half < 0.965, "bf16: %.3f", half);
  REQUIRE(tf32 > 0.955 && tf32 < 0.965, "tf32: %.3f", tf32);
}

// With what kernels are guessed to reach.
void check_choice() {
  const SpmmRates rates;
  for (const int64_t n : {512, 1024, 4096}) {
    const double half = crossover(4096, n, true, true, rates), tf32 = crossover(4096, n, false, true, rates),
                 fp32 = crossover(4096, n, false, false, rates);
    std::printf("4096 x 4096 x %ld: sparse from %.3f on against bf16, %.3f against tf32, %.3f against fp32\n", static_cast<long>(n), half, tf32,
                fp32);
    REQUIRE(half > 0.93 && half < 0.985, "bf16: %.3f", half);
    REQUIRE(tf32 > 0.93 && tf32 < 0.985, "tf32: %.3f", tf32);
    REQUIRE(fp32 > 0.6 && fp32 < 0.85, "fp32: %.3f", fp32);
  }
  // Whatever is chosen, it is not expected to lose to the dense product.
  for (const bool half : {false, true})
    for (const int64_t n : {1, 8, 32, 128, 512, 4096})
      for (const int64_t rows : {16, 1024, 4096, 11008})
        for (const double sparsity : {0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999}) {
          const SpmmShape s = shape(rows, 4096, n, sparsity, half);
          const SpmmAlgo algo = choose_spmm(s, kH200);
          const double dense = densify_seconds(s, rates, kH200);
          const double chosen = algo == SpmmAlgo::densify  ? dense
                                : algo == SpmmAlgo::staged ? staged_seconds(s, rates, kH200)
                                                           : scalar_seconds(s, rates, kH200);
          REQUIRE(chosen <= 1.05 * dense && chosen > 0, "%g against %g", chosen, dense);
        }
  REQUIRE(choose_spmm(shape(4096, 4096, 4096, 0.99, true), kH200) == SpmmAlgo::staged, "99 %%, bf16");
  REQUIRE(choose_spmm(shape(4096, 4096, 4096, 0.5, true), kH200) == SpmmAlgo::densify, "50 %%, bf16");
  REQUIRE(choose_spmm(shape(4096, 4096, 1, 0.95, false), kH200) == SpmmAlgo::scalar, "one column");
  SpmmShape s = shape(4096, 4096, 512, 0.5, true);
  REQUIRE(choose_spmm(s, kH200, false) != SpmmAlgo::densify, "densified against the wish");
  s.nnz = 0;
  REQUIRE(choose_spmm(s, kH200) == SpmmAlgo::scalar, "an empty matrix");
  REQUIRE(choose_spmm(shape(200000, 200000, 64, 0.9, true), kH200) != SpmmAlgo::densify, "80 GB of zeros");
  s = shape(4096, 4096, 512, 0.9, false);
  s.size = s.val_size = 8;
  REQUIRE(choose_spmm(s, kH200) == SpmmAlgo::scalar, "float64");
}

}  // namespace

int main() {
  check_plans();
  check_break_even();
  check_choice();
  std::printf("ok\n");
}
