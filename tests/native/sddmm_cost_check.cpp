// How a sampled product is cut, and which way it goes, without any kernel.
#include <cstdio>
#include <cstdlib>

#include "cuda/sddmm_cost.h"

using namespace sparsekern::cuda;

namespace {

const DeviceProps kLarge = {132}, kSmall = {2, 6000};

void require(bool holds, const char* what, const SddmmShape& s) {
  if (holds) return;
  std::printf("failed: %s: %ld x %ld, n %ld, %ld entries of %d bytes\n", what, static_cast<long>(s.rows), static_cast<long>(s.cols),
              static_cast<long>(s.n), static_cast<long>(s.entries), s.size);
  std::exit(1);
}

SddmmShape square(int64_t side, int64_t n, double density, int size, bool copies = false, bool pattern = true) {
  return {side, side, n, static_cast<int64_t>(density * side * side), size, copies, copies, pattern};
}

void check_cuts(const SddmmShape& s) {
  const int64_t slab = sddmm_slab(s.rows, s.cols, s.n, s.size), passes = sddmm_passes(s);
  require(slab > 0 && slab * s.size % 128 == 0 && slab <= 4096, "a pass is whole lines and not too long", s);
  require(passes * slab >= s.n && (passes - 1) * slab < s.n, "passes cover n, none is empty", s);
  require(slab * s.size * (s.rows + s.cols) <= 2 * kSddmmInCache || slab <= 256, "a pass fits the cache", s);
  const int64_t height = sddmm_chunk_rows(s.rows, s.cols);
  require(height == s.rows || (height % 128 == 0 && (height == 128 || height * s.cols * 4 <= kSddmmChunkBytes)), "chunks are tiles and small", s);
  for (const DeviceProps& props : {kLarge, kSmall}) {
    const SddmmStagedPlan plan = sddmm_staged_plan(s, props);
    require(plan.parts == sddmm_parts(s) && plan.parts <= kSddmmParts && plan.parts <= sddmm_steps(s), "parts do not depend on the device", s);
    require(plan.parts == 1 || plan.parts * s.entries * 4 <= kSddmmSumBytes, "sums of parts stay small", s);
    require(plan.shared_bytes() <= props.shared_bytes, "a tile fits shared memory", s);
    require(int64_t{plan.width} * plan.tiles >= s.cols && int64_t{plan.width} * (plan.tiles - 1) < s.cols, "tiles cover b, none is empty", s);
    require(plan.bands >= 1 && plan.bands <= std::max<int64_t>(s.rows, 1), "no band is empty", s);
    require(plan.seconds > 0 && plan.blocks() > 0, "a plan has blocks and takes time", s);
  }
}

// With more entries: gather, then staged, then dense, and never back.
void check_order(int64_t n, int size, bool copies) {
  int before = 0;
  for (double density = 1e-5; density <= 1; density *= 1.1) {
    const SddmmShape s = square(4096, n, density, size, copies);
    const int way = static_cast<int>(sddmm_way(s, kLarge));
    require(way >= before, "the ways follow one another", s);
    before = way;
  }
}

SddmmWay at(int64_t n, double density, int size, bool pattern = true) { return sddmm_way(square(4096, n, density, size, false, pattern), kLarge); }

}  // namespace

int main() {
  for (const int size : {2, 4})
    for (const int64_t n : {1, 7, 32, 128, 512, 1000, 4096, 5000, 1 << 21}) {
      for (const int64_t rows : {1, 50, 4096, 1 << 20})
        for (const int64_t cols : {1, 33, 4096, 100000})
          for (const int64_t entries : {int64_t{1}, rows, rows * std::min<int64_t>(cols, 300)})
            check_cuts({rows, cols, n, entries, size, true, false, true});
      for (const bool copies : {false, true})
        if (n <= 4096) check_order(n, size, copies);
    }
  const SddmmShape any = square(4096, 512, 0, 2);
  // Half precision at the size of real layers: dense up to 97 %, staged at 98 and 99 %, gathered beyond.
  for (const double density : {0.2, 0.1, 0.05, 0.03}) require(at(512, density, 2) == SddmmWay::dense, "bf16 is dense up to 97 %", any);
  for (const double density : {0.02, 0.01}) require(at(512, density, 2) == SddmmWay::staged, "bf16 is staged at 98 and 99 %", any);
  require(at(512, 0.001, 2) == SddmmWay::gather, "bf16 is gathered at 99.9 %", any);
  // fp32 without tensor cores: staged from 90 % up.
  require(at(512, 0.3, 4) == SddmmWay::dense, "fp32 is dense at 70 %", any);
  for (const double density : {0.1, 0.05, 0.02, 0.01}) require(at(512, density, 4) == SddmmWay::staged, "fp32 is staged from 90 %", any);
  SddmmShape tf32 = square(4096, 512, 0.05, 4);
  tf32.tf32 = true;
  require(sddmm_way(tf32, kLarge) == SddmmWay::dense, "fp32 is dense at 95 % where TF32 is allowed", tf32);
  // A list of places, in whatever order, is not staged; nor are fp64 and very long dots.
  require(at(512, 0.06, 2, false) == SddmmWay::dense && at(512, 0.002, 2, false) == SddmmWay::gather, "a list is dense or gathered", any);
  require(sddmm_way({6, 5, 256, 40000, 2, false, true, false}, kSmall) == SddmmWay::dense, "a list much longer than the product is dense", any);
  require(at(512, 0.1, 8) == SddmmWay::gather && at((1 << 20) + 1, 0.5, 2) == SddmmWay::gather, "fp64 and very long dots are gathered", any);
  std::printf("ok\n");
}
