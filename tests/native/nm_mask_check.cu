// Runs the kernels of nm_mask, nm_apply_ and nm_mask_transposable against plain loops. Arguments and builds: check.h.
#include "cuda/nm_mask.cu"

#include <numeric>

#include "check.h"
#include "cuda/mask_bits.cu"

using namespace sparsekern;
using namespace sparsekern::cuda;

namespace {

int cases = 0;

void require(bool holds, const char* what, const NmShape& s, size_t at) {
  if (holds) return;
  std::printf("%s: [%ld, %ld, %ld] %d:%d: wrong at %zu\n", what, static_cast<long>(s.outer), static_cast<long>(s.length), static_cast<long>(s.inner),
              s.n, s.m, at);
  std::exit(1);
}

// Few different values, so that ties are everywhere; NaN, inf and zeros of both signs among them.
template <class T>
std::vector<T> special(size_t n) {
  constexpr float kinds[] = {0.f, -0.f, 1.f, -1.f, 2.f, -2.f, NAN, INFINITY, -INFINITY, 0.5f};
  std::vector<T> out(n);
  for (T& x : out) narrow(kinds[draw() % 10], x);
  return out;
}

// The definition, one group at a time: numbers before NaN, larger ones first, then the lower index.
template <class T>
std::vector<uint8_t> by_hand(const std::vector<T>& x, int64_t outer, int64_t length, int64_t inner, int n, int m, bool use_abs) {
  std::vector<uint8_t> mask(x.size(), 0);
  for (int64_t o = 0; o < outer; ++o)
    for (int64_t first = 0; first < length; first += m)
      for (int64_t i = 0; i < inner; ++i) {
        const auto at = [&](int k) { return static_cast<size_t>((o * length + first + k) * inner + i); };
        std::vector<int> order(std::min<int64_t>(m, length - first));
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
          float p = widen(x[at(a)]), q = widen(x[at(b)]);
          if (use_abs) p = std::fabs(p), q = std::fabs(q);
          return std::isnan(q) ? !std::isnan(p) : p > q;
        });
        for (int k = 0; k < std::min<int>(n, static_cast<int>(order.size())); ++k) mask[at(order[k])] = 1;
      }
  return mask;
}

template <class T>
void check_mask(int64_t outer, int64_t length, int64_t inner, int n, int m, size_t shift) {
  const NmShape s = nm_shape(outer, length, inner, n, m);
  const auto numel = static_cast<size_t>(s.numel());
  const std::vector<T> x = special<T>(numel);
  const bool use_abs = shift % 2 == 0;
  const std::vector<uint8_t> want = by_hand(x, outer, length, inner, n, m, use_abs), kept = by_hand(x, outer, length, inner, n, m, true);
  const Device<T> from(x, shift), applied(x, shift);
  const Device<uint8_t> mask(std::vector<uint8_t>(numel, 7), shift), workspace(std::vector<uint8_t>(nm_mask_workspace_bytes(s, true), 7), 0);
  const Device<uint32_t> bits(std::vector<uint32_t>((numel + 31) / 32, 7), shift);
  REQUIRE_CUDA(launch_nm_mask(s, dtype_of<T>, from.get(), use_abs, mask.get(), false, nullptr, {1}, nullptr));
  REQUIRE_CUDA(launch_nm_mask(s, dtype_of<T>, from.get(), use_abs, bits.get(), true, workspace.get(), {1}, nullptr));
  REQUIRE_CUDA(launch_nm_apply(s, dtype_of<T>, applied.get(), {1}, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  const std::vector<uint8_t> got = mask.read();
  const std::vector<uint32_t> words = bits.read();
  const std::vector<T> left = applied.read(), same = from.read();
  workspace.read();
  T zero;
  narrow(0.f, zero);
  for (size_t i = 0; i < numel; ++i) {
    require(got[i] == want[i], "nm_mask", s, i);
    require((words[i / 32] >> i % 32 & 1) == want[i], "nm_mask packed", s, i);
    require(std::memcmp(&left[i], kept[i] ? &x[i] : &zero, sizeof(T)) == 0, "nm_apply_", s, i);
  }
  require(numel % 32 == 0 || words.back() >> numel % 32 == 0, "nm_mask packed: bits behind the last", s, numel);
  require(std::memcmp(same.data(), x.data(), numel * sizeof(T)) == 0, "nm_mask wrote its input", s, 0);
  cases += 3;
}

template <class T>
void check_transposable(int64_t bands, int64_t blocks, size_t shift) {
  const NmShape s = {4 * bands, 4 * blocks, 1, 0, 2, 4};
  const std::vector<T> x = shift % 2 ? special<T>(16 * bands * blocks) : values<T>(16 * bands * blocks);
  const Device<T> from(x, shift);
  const Device<uint8_t> mask(std::vector<uint8_t>(x.size(), 7), shift);
  REQUIRE_CUDA(launch_nm_mask_transposable(from.get(), mask.get(), bands, blocks, dtype_of<T>, {1}, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  const std::vector<uint8_t> got = mask.read();
  for (int64_t b = 0; b < bands * blocks; ++b) {
    const auto at = [&](int i, int j) { return static_cast<size_t>(((b / blocks * 4 + i) * blocks + b % blocks) * 4 + j); };
    float best = -1;
    int which = 0;
    for (int p = 0; p < kTransposablePatterns; ++p) {
      float row[4];
      for (int i = 0; i < 4; ++i) {
        row[i] = 0;
        for (int j = 0; j < 4; ++j) {
          const float size = std::fabs(widen(x[at(i, j)]));
          if (kTransposable.bits[p] >> (4 * i + j) & 1) row[i] += std::isnan(size) ? 0.f : std::min(size, 0x1p124f);
        }
      }
      const float sum = (row[0] + row[1]) + (row[2] + row[3]);
      if (sum > best) best = sum, which = p;
    }
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 4; ++j) require(got[at(i, j)] == (kTransposable.bits[which] >> (4 * i + j) & 1), "nm_mask_transposable", s, at(i, j));
  }
  ++cases;
}

template <class T>
void check_type() {
  struct Dims {
    int64_t outer, length, inner;
  };
  // What each way through the kernels takes, with short groups and without, aligned and not.
  for (const auto& [n, m] : {std::pair{2, 4}, {1, 2}, {1, 1}, {2, 8}, {3, 5}, {1, 16}, {8, 32}, {5, 33}, {64, 64}, {0, 4}})
    for (const Dims d : {Dims{1, 640, 1}, {3, 131, 1}, {2, 19, 8}, {2, 19, 6}, {1, 70, 3}, {5, 1, 1}, {1, 3, 1}})
      for (const size_t shift : {0, 1, 4}) check_mask<T>(d.outer, d.length, d.inner, n, m, shift);
  check_mask<T>(2, 8 * 1100, 1, 2, 4, 0);  // several steps of a block
  check_mask<T>(7, 601, 1, 2, 4, 1);
  check_mask<T>(1, 16 * 301, 1, 3, 16, 0);
  for (const size_t shift : {0, 1, 4}) check_transposable<T>(7, 45, shift);
}

#ifdef __CUDACC__
void report(const char* op, const char* shape, int n, int m, float us, double bytes) {
  std::printf("{\"op\": \"%s\", \"shape\": \"%s, %d:%d\", \"us\": %.1f, \"gb_per_s\": %.0f}\n", op, shape, n, m, us, bytes / us * 1e-3);
}

void bench() {
  constexpr int64_t side = 8192, numel = side * side;
  const DeviceProps props = this_device();
  const Device<float> x(values<float>(numel), 0);
  const Device<uint8_t> mask(std::vector<uint8_t>(numel, 0), 0);
  for (const auto& [n, m] : {std::pair{2, 4}, {1, 4}, {2, 8}, {4, 8}, {1, 16}, {8, 32}}) {
    const NmShape rows = nm_shape(side, side, 1, n, m), columns = nm_shape(1, side, side, n, m);
    const auto run = [&](const NmShape& s, bool packed) {
      return median_us([&] { return launch_nm_mask(s, DType::f32, x.get(), true, mask.get(), packed, nullptr, props, nullptr); });
    };
    report("nm_mask", "8192x8192", n, m, run(rows, false), numel * 5.0);
    report("nm_mask packed", "8192x8192", n, m, run(rows, true), numel * 4.125);
    report("nm_mask", "8192x8192 along columns", n, m, run(columns, false), numel * 5.0);
    report("nm_apply_", "8192x8192", n, m, median_us([&] { return launch_nm_apply(rows, DType::f32, x.get(), props, nullptr); }), numel * 8.0);
  }
  const auto transposable = [&] { return launch_nm_mask_transposable(x.get(), mask.get(), side / 4, side / 4, DType::f32, props, nullptr); };
  report("nm_mask_transposable", "8192x8192", 2, 4, median_us(transposable), numel * 5.0);
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
