// Runs the kernels of activity against a plain loop in fp64. Arguments and builds: check.h.
#include "cuda/activity.cu"

#include <string>

#include "check.h"

using namespace sparsekern;
using namespace sparsekern::cuda;

namespace {

int cases = 0;

struct Shape {
  int images, features, height, width;
  int taps_h = 0, taps_w = 0, stride = 1, padding = 0, dilation = 1;  // taps_h 0: no window
};

// `last`: features side by side; else places. `pad` elements lie between the lines, `shift` before the first. `part`: the one line
// goes as images of so many places, as the binding cuts a line of more than 2^30, and may end inside the last.
template <class T>
void check(const char* name, const Shape& s, bool last, bool is_signed, size_t pad, size_t shift, int64_t offset, int part = 0) {
  ActivityArgs a = {};
  const bool window = s.taps_h != 0;
  const auto out_of = [&](int side, int taps) { return window ? (side + 2 * s.padding - s.dilation * (taps - 1) - 1) / s.stride + 1 : side; };
  const int high = out_of(s.height, s.taps_h), wide = out_of(s.width, s.taps_w);
  a.window = window, a.features = s.features;
  a.feature = last ? 1 : static_cast<int64_t>(s.height) * s.width + static_cast<int64_t>(pad);
  a.step = last ? s.features + static_cast<int64_t>(pad) : 1, a.row = a.step * s.width;
  a.image = last ? a.row * s.height : a.feature * s.features;
  a.positions = int64_t{s.images} * high * wide;
  a.taps = window ? s.taps_h * s.taps_w : 1, a.kernel_w = window ? s.taps_w : 1;
  a.out_h = window ? high : 1, a.out_w = window ? wide : s.height * s.width, a.height = s.height, a.width = window ? s.width : a.out_w;
  a.stride_h = a.stride_w = s.stride, a.padding_h = a.padding_w = s.padding, a.dilation_h = a.dilation_w = s.dilation;
  const ActivityPlan plan = plan_activity(a, dtype_of<T>);
  if (plan.chunk > kMostPositions || plan.chunk * plan.chunks < a.positions || plan.chunk * (plan.chunks - 1) >= a.positions) {
    std::printf("%s: a plan of %d positions for %lld\n", name, plan.chunk, static_cast<long long>(a.positions));
    std::exit(1);
  }
  const std::vector<T> x = values<T>(static_cast<size_t>(a.image) * s.images);
  const int64_t seed = -123456789012345;
  if (part != 0) a.image = a.step * part, a.out_w = a.width = part;
  const size_t outputs = static_cast<size_t>(a.features) * a.taps;
  const DType type = dtype_of<T>;
  const Device<T> d_x(x, shift);
  const Device<int64_t> d_seed({seed}, 0);
  const Device<float> d_out(std::vector<float>(outputs, NAN), 1);
  a.x = d_x.get(), a.seed = is_signed ? d_seed.get() : nullptr, a.offset = offset;
  const Device<float> workspace(std::vector<float>(activity_workspace_bytes(a, type) / sizeof(float), NAN), 0);
  REQUIRE_CUDA(launch_activity(a, type, d_out.get(), workspace.get(), nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  const std::vector<float> got = d_out.read();
  (void)workspace.read();
  for (size_t o = 0; o < outputs; ++o) {
    const int f = static_cast<int>(o) / a.taps, tap = static_cast<int>(o) % a.taps;
    double want = 0, size = 0;
    for (int64_t b = 0; b < a.positions; ++b) {
      const int64_t n = b / (high * wide), h = b / wide % high * (window ? s.stride : 1) + (window ? tap / s.taps_w * s.dilation - s.padding : 0),
                    w = b % wide * (window ? s.stride : 1) + (window ? tap % s.taps_w * s.dilation - s.padding : 0);
      if (h < 0 || h >= s.height || w < 0 || w >= s.width) continue;
      const double value = widen(x[n * a.image + h * a.row + w * a.step + f * a.feature]);
      const Words4 words = sign_words(static_cast<uint64_t>(seed), static_cast<uint64_t>(offset + b) >> 7);
      const bool negative = words.v[(offset + b) >> 5 & 3] >> ((offset + b) & 31) & 1;
      want += is_signed ? (negative ? -value : value) : std::abs(value);
      size += std::abs(value);
    }
    if (!(std::abs(got[o] - want) <= 1e-5 * size + 1e-30)) {
      std::printf("%s: output %zu of %zu: %.9g, expected %.9g\n", name, o, outputs, got[o], want);
      std::exit(1);
    }
  }
  ++cases;
}

template <class T>
void check_type(const std::string& type) {
  for (const bool is_signed : {false, true})
    for (const bool last : {false, true}) {
      const std::string name = type + (last ? ", features last" : ", places last") + (is_signed ? ", signed" : "");
      const auto run = [&](const Shape& s, size_t pad, size_t shift, int64_t offset) {
        check<T>(name.c_str(), s, last, is_signed, pad, shift, offset);
      };
      run({1, 1, 1, 1}, 0, 0, 0);
      run({3, 5, 7, 7}, 0, 0, 0);
      run({2, 9, 4, 8}, 0, 0, 1000);
      run({1, 8, 40, 40}, 0, 0, 127);  // several chunks
      run({1, 264, 1, 70}, 8, 0, 5);   // several blocks of features, aligned rows with gaps
      run({2, 40, 4, 8}, 0, 1, 5);     // not aligned
      run({2, 7, 5, 9}, 3, 1, int64_t{1} << 40);
      run({2, 5, 9, 7, 3, 3, 1, 1}, 0, 0, 3);
      run({3, 8, 8, 8, 3, 3, 2, 1}, 0, 0, 0);
      run({1, 3, 11, 10, 5, 2, 2, 2, 2}, 0, 0, 77);
      run({2, 6, 12, 11, 1, 1, 2, 0}, 0, 1, 9);
      check<T>((name + ", a line in parts").c_str(), {1, 3, 1, 45}, last, is_signed, 0, 0, 6, 16);
    }
}

#ifdef __CUDACC__
void report(const char* shape, ActivityArgs a, double bytes) {
  const Device<float> x(std::vector<float>(static_cast<size_t>(bytes / 4), 1.f), 0), out(std::vector<float>(a.features * a.taps, 0.f), 0);
  const Device<int64_t> seed({7}, 0);
  const Device<float> workspace(std::vector<float>(activity_workspace_bytes(a, DType::f32) / 4, 0.f), 0);
  a.x = x.get();
  for (const bool is_signed : {false, true}) {
    a.seed = is_signed ? seed.get() : nullptr;
    const float us = median_us([&] { return launch_activity(a, DType::f32, out.get(), workspace.get(), nullptr); });
    std::printf("{\"op\": \"activity\", \"shape\": \"%s%s\", \"us\": %.1f, \"gb_per_s\": %.0f}\n", shape, is_signed ? ", signed" : "", us,
                bytes / us * 1e-3);
  }
}

void bench() {
  ActivityArgs a = {nullptr, nullptr, 0, 16384, 0, 0, 4096, 1, false, 4096, 1, 1, 1, 16384, 1, 16384, 0, 0, 0, 0, 0, 0};
  report("[16384, 4096]", a, 4.0 * 16384 * 4096);
  a = {nullptr, nullptr, 0, 128 * 3136, 64 * 3136, 0, 1, 3136, false, 64, 1, 1, 1, 3136, 1, 3136, 0, 0, 0, 0, 0, 0};
  report("[128, 64, 56, 56] as NHWC", a, 4.0 * 128 * 64 * 3136);
  a = {nullptr, nullptr, 0, 128 * 3136, 64 * 3136, 56, 1, 3136, true, 64, 9, 3, 56, 56, 56, 56, 1, 1, 1, 1, 1, 1};
  report("[128, 64, 56, 56] under 3 x 3", a, 4.0 * 128 * 64 * 3136);
  a = {nullptr, nullptr, 0, 128 * 3136, 64 * 3136, 56 * 64, 64, 1, true, 64, 9, 3, 56, 56, 56, 56, 1, 1, 1, 1, 1, 1};
  report("[128, 64, 56, 56] channels-last under 3 x 3", a, 4.0 * 128 * 64 * 3136);
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
  check_type<float>("fp32");
  check_type<__nv_bfloat16>("bf16");
  check_type<__half>("fp16");
  std::printf("ok: %d launches agree\n", cases);
}
