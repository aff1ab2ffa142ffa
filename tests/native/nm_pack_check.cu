// Runs the kernel of nm_pack against plain loops. Arguments and builds: check.h.
#include "cuda/nm_pack.cu"

#include <numeric>

#include "check.h"

using namespace sparsekern;
using namespace sparsekern::cuda;

namespace {

int cases = 0;

// Mostly zeros of either sign; in some groups more non-zeros than are kept, among them NaN and inf.
template <class T>
std::vector<T> sparse(size_t n) {
  constexpr float kinds[] = {0.f, -0.f, 0.f, 0.f, 1.f, -1.f, 3.f, NAN, -INFINITY, 0.25f};
  std::vector<T> out(n);
  for (T& x : out) narrow(kinds[draw() % (draw() % 4 ? 5 : 10)], x);
  return out;
}

template <class T>
void check_pack(int64_t bands, int64_t groups, int64_t v, int n, int m, size_t shift) {
  const auto require = [&](bool holds, const char* what, size_t at) {
    if (holds) return;
    std::printf("%s: %ld bands of %ld rows, %ld groups, %d:%d: wrong at %zu\n", what, static_cast<long>(bands), static_cast<long>(v),
                static_cast<long>(groups), n, m, at);
    std::exit(1);
  };
  const auto cols = static_cast<size_t>(groups * m), stored = static_cast<size_t>(groups * n), rows = static_cast<size_t>(bands * v);
  const std::vector<T> x = sparse<T>(rows * cols);
  const Device<T> from(x, shift), to(std::vector<T>(rows * stored, x[0]), shift);
  const Device<uint8_t> index(std::vector<uint8_t>(bands * stored, 77), shift);
  REQUIRE_CUDA(launch_nm_pack({from.get(), to.get(), index.get(), bands, groups, v, n, m}, dtype_of<T>, {1}, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  const std::vector<T> got = to.read();
  const std::vector<uint8_t> places = index.read();
  for (size_t band = 0; band < static_cast<size_t>(bands); ++band)
    for (size_t g = 0; g < static_cast<size_t>(groups); ++g) {
      std::vector<float> size(m, 0.f);
      for (int k = 0; k < m; ++k) {
        for (size_t r = band * v; r < (band + 1) * v; ++r) size[k] += std::fabs(widen(x[r * cols + g * m + k]));
        if (std::isnan(size[k])) size[k] = INFINITY;
      }
      std::vector<int> order(m);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return size[a] > size[b]; });
      order.resize(n);
      std::sort(order.begin(), order.end());
      for (int e = 0; e < n; ++e) {
        const size_t at = g * n + e;
        require(places[band * stored + at] == order[e], "index", band * stored + at);
        for (size_t r = band * v; r < (band + 1) * v; ++r)
          require(std::memcmp(&got[r * stored + at], &x[r * cols + g * m + order[e]], sizeof(T)) == 0, "values", r * stored + at);
      }
    }
  ++cases;
}

template <class T>
void check_type() {
  for (const auto& [n, m] : {std::pair{2, 4}, {1, 4}, {1, 1}, {2, 8}, {3, 7}, {1, 16}, {8, 32}, {5, 33}, {64, 64}})
    for (const int64_t v : {1, 3})
      for (const size_t shift : {0, 1}) {
        check_pack<T>(5, 3, v, n, m, shift);
        check_pack<T>(2, 150, v, n, m, shift);
      }
  check_pack<T>(20, 600, 1, 2, 4, 0);  // several tiles to a row and to a block
}

#ifdef __CUDACC__
void bench() {
  constexpr int64_t side = 8192;
  const DeviceProps props = this_device();
  const Device<float> x(sparse<float>(side * side), 0), to(std::vector<float>(side * side / 2), 0);
  const Device<uint8_t> index(std::vector<uint8_t>(side * side / 2), 0);
  struct Row {
    int n, m, v;
  };
  for (const Row r : {Row{2, 4, 1}, {1, 4, 1}, {2, 8, 1}, {1, 16, 1}, {8, 32, 1}, {2, 16, 16}}) {
    const NmPackArgs args = {x.get(), to.get(), index.get(), side / r.v, side / r.m, r.v, r.n, r.m};
    const float us = median_us([&] { return launch_nm_pack(args, DType::f32, props, nullptr); });
    const double bytes = side * side * (4.0 + r.n * (4.0 + 1.0 / r.v) / r.m);
    std::printf("{\"op\": \"nm_pack\", \"shape\": \"8192x8192, %d:%d, v = %d\", \"us\": %.1f, \"gb_per_s\": %.0f}\n", r.n, r.m, r.v, us,
                bytes / us * 1e-3);
  }
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
  check_type<float>();
  check_type<__nv_bfloat16>();
  check_type<__half>();
  std::printf("ok: %d launches agree\n", cases);
}
