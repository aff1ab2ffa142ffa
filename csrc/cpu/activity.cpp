// Checks, layouts, shares and registration of activity; the sums are in activity.h.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <optional>
#include <vector>

#include "common/activity_args.h"
#include "common/philox.h"

#define SK_KERNEL_FILE "cpu/activity.h"
#include "cpu/for_each_isa.h"

namespace sparsekern {
namespace {

constexpr int64_t kRows = 256;           // rows of one partial sum
constexpr int64_t kFeatureBlock = 1024;  // sums that stay in the first-level cache
constexpr int64_t kGroups = 64;          // groups of images: enough for many threads, few enough to add up at no cost
constexpr int64_t kMostImages = 1024;    // images that share the fp32 sums of a plane

// Items that a thread takes at least: below 128K elements starting another one costs more than it saves.
int64_t grain(int64_t items, int64_t elements) { return std::max<int64_t>(1, items * (1 << 17) / std::max<int64_t>(1, elements)); }

// sign[i] of the numbers offset + i.
template <class A>
std::vector<A> signs_of(uint64_t seed, int64_t offset, int64_t count) {
  std::vector<A> sign(count);
  const int64_t first = offset >> 7, blocks = count ? ((offset + count - 1) >> 7) - first + 1 : 0;
  at::parallel_for(0, blocks, 256, [&](int64_t from, int64_t to) {
    for (int64_t block = from; block < to; ++block) {
      const Words4 words = sign_words(seed, first + block);
      const int64_t start = ((first + block) << 7) - offset;
      for (int64_t i = std::max<int64_t>(start, 0); i < std::min(start + 128, count); ++i)
        sign[i] = A(1) - A(2) * static_cast<A>(words.v[(i - start) >> 5] >> ((i - start) & 31) & 1);
    }
  });
  return sign;
}

// out[f] = the sum of partial[g][f] over the groups, in order.
template <class P, class O>
void add_up(const std::vector<P>& partial, int64_t groups, int64_t features, O* out) {
  at::parallel_for(0, features, grain(features, groups * features), [&](int64_t from, int64_t to) {
    for (int64_t f = from; f < to; ++f) {
      double total = 0;
      for (int64_t g = 0; g < groups; ++g) total += partial[g * features + f];
      out[f] = static_cast<O>(total);
    }
  });
}

// Images in groups whose number depends on the sizes alone.
struct Groups {
  Groups(int64_t images, int64_t wanted) : images_(images), share_(std::max<int64_t>(1, (images + wanted - 1) / wanted)) {}
  int64_t count() const { return (images_ + share_ - 1) / share_; }
  int64_t begin(int64_t g) const { return g * share_; }
  int64_t end(int64_t g) const { return std::min((g + 1) * share_, images_); }

 private:
  int64_t images_, share_;
};

template <class T, class O>
void flat(const T* x, const ActivityView& v, const Arith<T>* sign, O* out) {
  const int64_t positions = v.images * v.length;
  if (v.feature == 1) {
    const int64_t groups = (positions + kRows - 1) / kRows, blocks = (v.features + kFeatureBlock - 1) / kFeatureBlock;
    std::vector<Arith<T>> partial(groups * v.features);
    const auto work = SK_PICK(sum_rows<T>);
    at::parallel_for(0, groups * blocks, grain(groups * blocks, positions * v.features), [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        const int64_t group = i / blocks, f = i % blocks * kFeatureBlock;
        work(x + f, v, sign, group * kRows, std::min((group + 1) * kRows, positions), std::min(kFeatureBlock, v.features - f),
             partial.data() + group * v.features + f);
      }
    });
    return add_up(partial, groups, v.features, out);
  }
  const Groups groups(v.images, kGroups);
  const int64_t blocks = (v.features + 63) / 64;
  std::vector<double> partial(groups.count() * v.features);
  const auto work = SK_PICK(sum_planes<T>);
  at::parallel_for(0, groups.count() * blocks, grain(groups.count() * blocks, positions * v.features), [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const int64_t group = i / blocks, f = i % blocks * 64;
      work(x, v, sign, groups.begin(group), groups.end(group), f, std::min(f + 64, v.features), partial.data() + group * v.features + f);
    }
  });
  add_up(partial, groups.count(), v.features, out);
}

template <class T, class O>
void windowed(const T* x, int64_t images, int64_t channels, const ActivityWindow& w, const Arith<T>* sign, O* out) {
  using A = Arith<T>;
  const int64_t size = w.input[0] * w.input[1], taps = w.kernel[0] * w.kernel[1];
  if (!sign) {
    // Channels give the parallel work where there are many; folding all images into one plane saves work at the taps.
    const Groups groups(images, std::max(kGroups / std::max<int64_t>(channels, 1), images / kMostImages + 1));
    std::vector<double> partial(groups.count() * channels * taps);
    const auto work = SK_PICK(sum_window<T>);
    at::parallel_for(0, groups.count() * channels, grain(groups.count() * channels, images * channels * size), [&](int64_t from, int64_t to) {
      std::vector<A> plane(size);
      std::vector<double> lines(w.input[0]);
      for (int64_t i = from; i < to; ++i) {
        const int64_t g = i / channels, c = i % channels;
        work(x + c * size, channels * size, groups.begin(g), groups.end(g), w, plane.data(), lines.data(), partial.data() + i * taps);
      }
    });
    return add_up(partial, groups.count(), channels * taps, out);
  }
  const Groups groups(images, kGroups);
  std::vector<double> partial(groups.count() * channels * taps);
  const auto spread = SK_PICK(spread_signs<A>);
  const auto work = SK_PICK(add_signed_window<T>);
  at::parallel_for(0, groups.count(), grain(groups.count(), images * channels * size * taps), [&](int64_t from, int64_t to) {
    std::vector<A> line(w.kernel[1] * (size + (w.kernel[0] - 1) * w.dilation[0] * w.input[1]));
    std::vector<double> found(taps);
    for (int64_t g = from; g < to; ++g)
      for (int64_t n = groups.begin(g); n < groups.end(g); ++n) {
        const A* of_image = sign + n * w.output[0] * w.output[1];
        spread(of_image, w, line.data());
        work(x + n * channels * size, channels, of_image, line.data(), w, found.data(), partial.data() + g * channels * taps);
      }
  });
  add_up(partial, groups.count(), channels * taps, out);
}

template <class T, class O>
void run(const at::Tensor& x, const ActivityWindow* w, const std::optional<uint64_t>& seed, int64_t offset, O* out) {
  using A = Arith<T>;
  const int64_t positions = w ? x.size(0) * w->output[0] * w->output[1] : x.size(-1) ? x.numel() / x.size(-1) : 0;
  const std::vector<A> sign = seed ? signs_of<A>(*seed, offset, positions) : std::vector<A>();
  const A* signs = seed ? sign.data() : nullptr;
  if (positions == 0 || x.numel() == 0) return;
  if (w) return windowed(x.contiguous().const_data_ptr<T>(), x.size(0), x.size(1), *w, signs, out);
  if (const auto v = view_of(x); v && (v->feature == 1 || v->step == 1)) return flat(x.const_data_ptr<T>(), *v, signs, out);
  const at::Tensor dense = x.contiguous();
  flat(dense.const_data_ptr<T>(), *view_of(dense), signs, out);
}

at::Tensor activity_cpu(const at::Tensor& x, bool is_signed, const std::optional<at::Tensor>& seed, int64_t offset, at::IntArrayRef kernel_size,
                        at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
  const bool in_window = !kernel_size.empty();
  check_activity(x, is_signed, seed, offset, in_window);
  std::optional<uint64_t> key;
  if (is_signed) key = static_cast<uint64_t>(*seed->const_data_ptr<int64_t>());
  ActivityWindow window;
  if (in_window) window = window_of(x, kernel_size, stride, padding, dilation);
  const ActivityWindow* w = in_window ? &window : nullptr;
  using at::ScalarType;
  const ScalarType type = x.scalar_type();
  const int64_t features = in_window ? x.size(1) * window.kernel[0] * window.kernel[1] : x.size(-1);
  at::Tensor out = at::zeros({features}, type == ScalarType::Double ? at::kDouble : at::kFloat);
  if (type == ScalarType::Float) run<float>(x, w, key, offset, out.mutable_data_ptr<float>());
  else if (type == ScalarType::BFloat16) run<c10::BFloat16>(x, w, key, offset, out.mutable_data_ptr<float>());
  else if (type == ScalarType::Half) run<c10::Half>(x, w, key, offset, out.mutable_data_ptr<float>());
  else run<double>(x, w, key, offset, out.mutable_data_ptr<double>());
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(sparsekern, CPU, m) { m.impl("activity", &activity_cpu); }

}  // namespace sparsekern
