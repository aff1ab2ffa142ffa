// Runs the kernel of channel_scores against a plain loop in fp64. Arguments and builds: check.h.
#include "cuda/channel_scores.cu"

#include <memory>

#include "check.h"

using namespace sparsekern;
using namespace sparsekern::cuda;

namespace {

int cases = 0;

struct Mask {
  MaskKind kind;
  std::vector<unsigned char> bools;
  std::unique_ptr<Device<unsigned char>> d_bools;
  std::unique_ptr<Device<uint32_t>> d_words;
  Mask(MaskKind kind, size_t n, double density, size_t shift) : kind(kind), bools(n, 1) {
    std::vector<uint32_t> words((n + 31) / 32, 0);
    for (size_t i = 0; i < n; ++i) {
      if (kind != MaskKind::none) bools[i] = uniform() * 0.5 + 0.5 < density;
      if (bools[i]) words[i / 32] |= 1u << (i % 32);
    }
    d_bools = std::make_unique<Device<unsigned char>>(bools, shift);
    d_words = std::make_unique<Device<uint32_t>>(words, shift);
  }
  const void* get() const {
    return kind == MaskKind::bools ? static_cast<const void*>(d_bools->get()) : kind == MaskKind::bits ? d_words->get() : nullptr;
  }
};

template <class T>
struct Weight {
  size_t rows, size;
  Mask a, b;
  std::vector<T> values;
  Device<T> d_weight;
  Device<float> d_out;

  Weight(size_t rows, size_t size, MaskKind a, MaskKind b, size_t shift)
      : rows(rows),
        size(size),
        a(a, rows * size, 0.3, shift),
        b(b, rows * size, 0.1, shift),
        values(::values<T>(rows * size)),
        d_weight((hide(), values), shift),
        d_out(std::vector<float>(rows, NAN), shift) {}
  void hide() {
    for (size_t i = 0; i < values.size(); ++i)
      if (!a.bools[i] && !b.bools[i]) narrow(NAN, values[i]);  // must reach nothing
  }
  ScoreEntry entry(bool has_b) const {
    return {d_weight.get(),
            a.get(),
            has_b ? b.get() : nullptr,
            d_out.get(),
            static_cast<int64_t>(size),
            static_cast<int32_t>(rows),
            0,
            a.kind,
            has_b ? b.kind : MaskKind::none};
  }
  void expect(bool has_b, float beta) {
    const std::vector<float> got = d_out.read();
    for (size_t r = 0; r < rows; ++r) {
      double want = 0;
      for (size_t i = r * size; i < (r + 1) * size; ++i) {
        if (a.bools[i]) want += beta * std::abs(widen(values[i]));
        if (has_b && b.bools[i]) want += (1 - beta) * std::abs(widen(values[i]));
      }
      if (!(std::abs(got[r] - want) <= 1e-5 * want)) {
        std::printf("kinds %d and %d, row %zu of [%zu, %zu]: %.9g, expected %.9g\n", static_cast<int>(a.kind), has_b ? static_cast<int>(b.kind) : -1,
                    r, rows, size, got[r], want);
        std::exit(1);
      }
    }
  }
};

template <class T>
void check(const std::vector<std::unique_ptr<Weight<T>>>& list, bool has_b) {
  const float beta = has_b ? 0.75f : 1.f;
  std::vector<ScoreEntry> entries;
  for (const auto& w : list) entries.push_back(w->entry(has_b));
  REQUIRE_CUDA(launch_channel_scores(entries.data(), entries.size(), dtype_of<T>, has_b, beta, 1 - beta, {1}, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  for (const auto& w : list) w->expect(has_b, beta);
  ++cases;
}

template <class T>
void check_type() {
  const std::vector<std::pair<size_t, size_t>> shapes = {{1, 1},   {70, 1},   {33, 9},   {65, 27},  {9, 64},   {5, 128},  {20, 129},
                                                         {9, 147}, {3, 1024}, {5, 1025}, {2, 2048}, {3, 4095}, {2, 4608}, {1, 9001}};
  for (int turn = 0; turn < 3; ++turn) {
    std::vector<std::unique_ptr<Weight<T>>> list;
    for (const auto& [rows, size] : shapes) {
      const size_t k = list.size() + turn;
      list.push_back(std::make_unique<Weight<T>>(rows, size, static_cast<MaskKind>(k % 3), static_cast<MaskKind>((k + k / 3 + turn) % 3), k % 5));
    }
    check(list, turn != 0);
  }
}

#ifdef __CUDACC__
// 50 weights of [512, 4096].
void bench() {
  const DeviceProps props = this_device();
  for (const MaskKind kind : {MaskKind::bools, MaskKind::bits})
    for (const bool has_b : {false, true}) {
      std::vector<std::unique_ptr<Weight<float>>> list;
      std::vector<ScoreEntry> entries;
      for (int k = 0; k < 50; ++k) {
        list.push_back(std::make_unique<Weight<float>>(512, 4096, kind, kind, 0));
        entries.push_back(list.back()->entry(has_b));
      }
      const float us = median_us([&] { return launch_channel_scores(entries.data(), 50, DType::f32, has_b, 0.75f, 0.25f, props, nullptr); });
      const double mask = kind == MaskKind::bools ? 1 : 0.125, bytes = 50.0 * 512 * 4096 * (4 + mask * (has_b ? 2 : 1));
      std::printf("{\"op\": \"channel_scores\", \"shape\": \"50 x [512, 4096] %s, %d masks\", \"us\": %.1f, \"gb_per_s\": %.0f}\n",
                  kind == MaskKind::bools ? "bools" : "bits", has_b ? 2 : 1, us, bytes / us * 1e-3);
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
  std::vector<std::unique_ptr<Weight<float>>> list;  // the long table; two launches
  for (size_t k = 0; k < 700; ++k) list.push_back(std::make_unique<Weight<float>>(1 + k % 3, 1 + k % 7, MaskKind::bits, MaskKind::bools, 0));
  check(list, true);
  std::printf("ok: %d launches agree\n", cases);
}
