// Runs the kernels of pack_mask, unpack_mask and mask_stats against plain loops. Arguments and builds: check.h.
#include "cuda/mask_bits.cu"

#include <memory>

#include "check.h"

using namespace sparsekern;
using namespace sparsekern::cuda;

namespace {

int cases = 0;

void require(bool holds, const char* what, size_t n, size_t at) {
  if (holds) return;
  std::printf("%s: %zu elements: wrong at %zu\n", what, n, at);
  std::exit(1);
}

std::vector<uint8_t> bools(size_t n, int kinds = 2) {
  std::vector<uint8_t> out(n);
  for (uint8_t& x : out) x = draw() % 3 == 0 ? static_cast<uint8_t>(1 + draw() % (kinds - 1)) : 0;
  return out;
}

std::vector<uint32_t> words_of(const std::vector<uint8_t>& mask) {
  std::vector<uint32_t> words((mask.size() + 31) / 32, 0);
  for (size_t i = 0; i < mask.size(); ++i) words[i / 32] |= static_cast<uint32_t>(mask[i] != 0) << (i % 32);
  return words;
}

void check_pack(size_t n, size_t shift) {
  const std::vector<uint8_t> mask = bools(n, shift % 2 ? 256 : 2);  // any nonzero byte is true
  const std::vector<uint32_t> want = words_of(mask);
  const Device<uint8_t> from(mask, shift), back(std::vector<uint8_t>(n, 7), shift);
  const Device<uint32_t> to(std::vector<uint32_t>(want.size(), 7), shift);
  REQUIRE_CUDA(launch_pack_mask(from.get(), to.get(), static_cast<int64_t>(n), {1}, nullptr));
  REQUIRE_CUDA(launch_unpack_mask(to.get(), back.get(), static_cast<int64_t>(n), {1}, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  const std::vector<uint32_t> bits = to.read();
  const std::vector<uint8_t> got = back.read();
  for (size_t i = 0; i < want.size(); ++i) require(bits[i] == want[i], "pack_mask", n, i);
  for (size_t i = 0; i < n; ++i) require(got[i] == (mask[i] != 0), "unpack_mask", n, i);
  cases += 2;
}

void check_stats(const std::vector<size_t>& sizes, bool two) {
  std::vector<std::unique_ptr<Device<uint8_t>>> bytes;
  std::vector<std::unique_ptr<Device<uint32_t>>> words;
  std::vector<StatsEntry> entries;
  std::vector<int64_t> want(4 * sizes.size(), 0);
  const Device<int64_t> stats(want, 0);
  for (size_t t = 0; t < sizes.size(); ++t) {
    const std::vector<uint8_t> a = bools(sizes[t], t % 4 ? 2 : 256), b = bools(sizes[t]);
    for (size_t i = 0; i < a.size(); ++i) {
      const bool in_a = a[i] != 0, in_b = two && b[i] != 0;
      want[4 * t] += in_a, want[4 * t + 1] += in_b, want[4 * t + 2] += in_a && in_b, want[4 * t + 3] += two && in_a != in_b;
    }
    if (a.empty()) continue;  // the binding drops empty tensors
    StatsEntry e = {nullptr, nullptr, stats.get() + 4 * t, static_cast<int64_t>(a.size()), t % 2 == 1, 0, 0};
    for (const void** at : {&e.a, &e.b}) {
      const std::vector<uint8_t>& mask = at == &e.a ? a : b;
      if (at == &e.b && !two) continue;
      if (e.packed) words.push_back(std::make_unique<Device<uint32_t>>(words_of(mask), t % 3)), *at = words.back()->get();
      else bytes.push_back(std::make_unique<Device<uint8_t>>(mask, t % 5)), *at = bytes.back()->get();
    }
    if (e.packed) e.count = (e.count + 31) / 32;
    entries.push_back(e);
  }
  REQUIRE_CUDA(launch_mask_stats(entries.data(), entries.size(), {1}, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  const std::vector<int64_t> got = stats.read();
  for (size_t i = 0; i < want.size(); ++i) require(got[i] == want[i], two ? "mask_stats of two lists" : "mask_stats", sizes[i / 4], i);
  ++cases;
}

#ifdef __CUDACC__
void report(const char* op, const char* shape, float us, double bytes) {
  std::printf("{\"op\": \"%s\", \"shape\": \"%s\", \"us\": %.1f, \"gb_per_s\": %.0f}\n", op, shape, us, bytes / us * 1e-3);
}

void bench() {
  const size_t n = 100 << 20;
  const DeviceProps props = this_device();
  const std::vector<uint8_t> mask = bools(n);
  const Device<uint8_t> bytes(mask, 0);
  const Device<uint32_t> words(words_of(mask), 0);
  const Device<int64_t> stats({0, 0, 0, 0}, 0);
  const auto size = static_cast<int64_t>(n);
  report("pack_mask", "100M", median_us([&] { return launch_pack_mask(bytes.get(), words.get(), size, props, nullptr); }), n * 1.125);
  report("unpack_mask", "100M", median_us([&] { return launch_unpack_mask(words.get(), bytes.get(), size, props, nullptr); }), n * 1.125);
  StatsEntry e = {bytes.get(), bytes.get(), stats.get(), size, false, 0, 0};
  report("mask_stats", "100M bools, two lists", median_us([&] { return launch_mask_stats(&e, 1, props, nullptr); }), n * 2.0);
  e = {words.get(), words.get(), stats.get(), size / 32, true, 0, 0};
  report("mask_stats", "100M bits, two lists", median_us([&] { return launch_mask_stats(&e, 1, props, nullptr); }), n * 0.25);
}
#endif

}  // namespace

int main(int argc, char** argv) {
  if (wants_bench(argc, argv)) {
#ifdef __CUDACC__
    bench();
#endif
    return 0;
  }
  for (const size_t n : {1, 15, 16, 17, 31, 32, 33, 63, 255, 1024, 16400, 70007})
    for (const size_t shift : {0, 1, 4, 16}) check_pack(n, shift);
  for (const bool two : {false, true}) check_stats({0, 1, 15, 33, 16, 1025, 8200, 40001, 0, 9000, 300, 131072 + 77}, two);
  check_stats(std::vector<size_t>(900, 5), false);  // the long table; two launches
  std::printf("ok: %d launches agree\n", cases);
}
