// The cost model of the N:M product, its plan of tiles, and division by multiplication: host code.
#include "cuda/nm_cost.h"

#include <initializer_list>
#include <tuple>

#include "require.h"

using namespace sparsekern::cuda;

namespace {

const DeviceProps kH200 = {132, 227 * 1024, 50 << 20}, kEmulated = {2};

NmShape shape(int64_t rows, int64_t cols, int64_t n, int keep, int group, int64_t v, int size, int val_size, bool tf32 = false) {
  return {{rows, cols, n, rows * (cols / group) * keep, size, val_size, size == 2, tf32, false, false, 1}, v, keep, group};
}

void check_division() {
  for (int d = 1; d <= 64; ++d) {
    const Divisor by = divisor(d);
    const auto divide = [&](uint32_t x) { return static_cast<uint32_t>(static_cast<uint64_t>(x) * by.magic >> by.shift); };
    for (uint32_t x = 0; x < 20000; ++x) REQUIRE(divide(x) == x / d, "%u / %d", x, d);
    for (uint64_t q = 1; q < (uint64_t{1} << 31) / d; q = q * 3 / 2 + 1)
      for (uint64_t x : {q * d - 1, q * d, q * d + d - 1})
        if (x < uint64_t{1} << 31) REQUIRE(divide(static_cast<uint32_t>(x)) == x / d, "%u / %d", static_cast<uint32_t>(x), d);
    REQUIRE(divide((1u << 31) - 1) == ((1u << 31) - 1) / d, "2^31 - 1 by %d", d);
  }
}

void check_plans() {
  for (const int shared : {8192, 99 * 1024, 227 * 1024})
    for (const int group : {1, 4, 7, 8, 16, 33, 63, 64})
      for (const int keep : {1, 2, 3, 5})
        for (const int64_t v : {1, 2, 4, 64})
          for (const int64_t groups : {1, 5, 64, 700})
            for (const int64_t n : {1, 65, 512}) {
              if (keep > group) continue;
              const int64_t rows = 64 * 5, cols = groups * group;
              const StagedPlan p = plan_nm_staged(rows, cols, n, 4, v, keep, group, {132, shared});
              if (p.tile_rows == 0) {
                REQUIRE(!staged_fits(p, rows, n, rows * groups * keep) && (2 * std::lcm(8, group) + 1) * kPanelBytes > shared, "%d columns", group);
                continue;
              }
              const int64_t lines = rows_together(v) ? rows / kRowsTogether : rows;
              REQUIRE(p.shared_bytes <= shared, "%ld bytes", static_cast<long>(p.shared_bytes));
              REQUIRE(p.tile_rows % 8 == 0 && p.tile_rows % group == 0 && static_cast<int64_t>(p.tile_rows) * p.tiles >= cols, "%d rows",
                      p.tile_rows);
              REQUIRE(p.threads <= (rows_together(v) ? kTogetherThreads : kStagedThreads), "%d threads", p.threads);
              REQUIRE(p.rows_per_group == 1 || !rows_together(v), "two sets of rows that are taken together");
              REQUIRE(static_cast<int64_t>(p.row_blocks) * p.threads / 4 * p.rows_per_group >= lines, "%d row blocks", p.row_blocks);
            }
}

double seconds(const NmShape& s, NmAlgo algo, const NmRates& rates = {}) {
  return algo == NmAlgo::scalar   ? scalar_seconds(s.product, rates.hardware, kH200)
         : algo == NmAlgo::staged ? nm_staged_seconds(s, rates, kH200)
         : algo == NmAlgo::mma    ? nm_mma_seconds(s, rates, kH200)
                                  : densify_seconds(s.product, rates.hardware, kH200);
}

// Of the shapes that shall be 1.5 times as fast as the library's dense product: the least share of the hardware's rates that a kernel must reach
// for it. This is the model's arithmetic under assumed rates and shares, and says nothing of what a GPU does; a measured share replaces them.
void check_bounds() {
  constexpr double kWanted = 1.5;
  for (const auto& [s, algo, share] : {std::tuple{shape(4096, 4096, 512, 1, 8, 1, 4, 4), NmAlgo::staged, &NmRates::staged_share},
                                       {shape(4096, 4096, 512, 1, 16, 1, 4, 4), NmAlgo::staged, &NmRates::staged_share},
                                       {shape(4096, 4096, 512, 2, 16, 64, 2, 2), NmAlgo::mma, &NmRates::mma_share}}) {
    NmRates rates;
    const double assumed = rates.*share;
    const SpmmShape& p = s.product;
    const double flops = p.half ? rates.hardware.dense_half : rates.hardware.dense_f32;
    const double dense = rates.hardware.launch + 2.0 * p.rows * p.cols * p.n / flops;
    const auto gain = [&](double reached) {
      rates.*share = reached;
      return dense / seconds(s, algo, rates);
    };
    int least = 100;  // per cent
    while (least > 1 && gain((least - 1) / 100.0) >= kWanted) --least;
    for (int reached = 1; reached <= 100; ++reached) {
      REQUIRE((gain(reached / 100.0) >= kWanted) == (reached >= least), "%.2f at %d %%", gain(reached / 100.0), reached);
      rates.*share = reached / 100.0;
      REQUIRE(reached < least || choose_nm(s, kH200, true, rates) == algo, "%d:%d at %d %%", s.keep, s.group, reached);
    }
    std::printf(
        "%ld:%d:%d, 4096 x 4096 x 512, by the model: %.2fx a dense product at the assumed %.0f %% of the rates; below %d %% less than %.1fx\n",
        static_cast<long>(s.v), s.keep, s.group, gain(assumed), 100 * assumed, least, kWanted);
    REQUIRE(100 * assumed >= least, "%.0f %% assumed", 100 * assumed);
  }
}

void check_choice() {
  for (const int size : {2, 4})
    for (const int64_t v : {1, 4, 16, 64})
      for (const int64_t n : {1, 8, 128, 512, 4096})
        for (const int64_t rows : {64, 4096, 11008})
          for (const int group : {2, 4, 8, 16, 64}) {
            const NmShape s = shape(rows, 4096, n, 1, group, v, size, size);
            const double chosen = seconds(s, choose_nm(s, kH200));
            for (const NmAlgo other : {NmAlgo::scalar, NmAlgo::staged, NmAlgo::mma, NmAlgo::densify})
              REQUIRE(chosen <= seconds(s, other) && chosen > 0, "%g against %g", chosen, seconds(s, other));
          }
  REQUIRE(choose_nm(shape(4096, 4096, 512, 1, 2, 1, 2, 2), kH200) == NmAlgo::densify, "half of all, bf16");
  REQUIRE(choose_nm(shape(4096, 4096, 512, 1, 2, 1, 2, 2), kH200, false) != NmAlgo::densify, "densified against the wish");
  REQUIRE(choose_nm(shape(4096, 4096, 512, 1, 8, 64, 2, 4), kH200) != NmAlgo::mma, "float32 values on the tensor cores");
  REQUIRE(choose_nm(shape(4096, 4096, 512, 0, 8, 1, 4, 4), kH200) == NmAlgo::scalar, "nothing stored");
  REQUIRE(choose_nm(shape(4096, 4096, 512, 1, 8, 1, 8, 8), kH200) == NmAlgo::scalar, "float64");
  // Shapes by which the tests of the binding reach every algorithm on the emulated device.
  REQUIRE(choose_nm(shape(64, 128, 2, 1, 8, 1, 4, 4), kEmulated) == NmAlgo::scalar, "a narrow b");
  REQUIRE(choose_nm(shape(72, 512, 96, 1, 8, 1, 4, 4), kEmulated) == NmAlgo::staged, "1:8");
  REQUIRE(choose_nm(shape(256, 512, 64, 1, 8, 4, 4, 4), kEmulated) == NmAlgo::staged, "4:1:8");
  REQUIRE(choose_nm(shape(64, 256, 96, 2, 16, 64, 2, 2), kEmulated) == NmAlgo::mma, "64:2:16");
  REQUIRE(choose_nm(shape(128, 256, 160, 1, 2, 1, 4, 4), kEmulated) == NmAlgo::densify, "1:2");
}

}  // namespace

int main() {
  check_division();
  check_plans();
  check_bounds();
  check_choice();
  std::printf("ok\n");
}
