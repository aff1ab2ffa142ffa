// Checks, layouts, shares and registration of activity; the sums are in activity.h.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <optional>
#include <vector>

#include "common/philox.h"
#include "cpu/activity_types.h"

#define SK_KERNEL_FILE "cpu/activity.h"
#include "cpu/for_each_isa.h"

namespace sparsekern {
namespace {

constexpr const char* kOp = "activity";
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

// x as [images, length, features] without a copy: leading dimensions are merged where one stride serves both.
std::optional<ActivityView> view_of(const at::Tensor& x) {
  std::vector<std::pair<int64_t, int64_t>> lead;  // size, stride
  for (int64_t d = 0; d + 1 < x.dim(); ++d) {
    if (x.size(d) == 1) continue;
    if (!lead.empty() && lead.back().second == x.stride(d) * x.size(d)) lead.back() = {lead.back().first * x.size(d), x.stride(d)};
    else lead.emplace_back(x.size(d), x.stride(d));
  }
  if (lead.size() > 2) return std::nullopt;
  ActivityView v;
  v.features = x.size(-1), v.feature = x.stride(-1);
  v.images = lead.size() == 2 ? lead[0].first : 1, v.image = lead.size() == 2 ? lead[0].second : 0;
  v.length = lead.empty() ? 1 : lead.back().first, v.step = lead.empty() ? 0 : lead.back().second;
  if (v.features == 1) v.feature = 1;
  if (v.feature == 1 || v.step == 1) return v;
  return std::nullopt;
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

using Pair = std::array<int64_t, 2>;

Pair pair_of(const char* name, at::IntArrayRef given, int64_t fallback, int64_t least) {
  if (given.empty()) return {fallback, fallback};
  TORCH_CHECK_VALUE(given.size() == 2 && given[0] >= least && given[1] >= least, kOp, ": ", name, ": expected two numbers >= ", least, ", got ",
                    given);
  return {given[0], given[1]};
}

ActivityWindow window_of(const at::Tensor& x, at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                         at::IntArrayRef dilation) {
  TORCH_CHECK_VALUE(x.dim() == 4, kOp, ": x: expected [N, C, H, W] with kernel_size, got shape ", x.sizes());
  ActivityWindow w;
  w.kernel = pair_of("kernel_size", kernel_size, 1, 1);
  w.stride = pair_of("stride", stride, 1, 1);
  w.padding = pair_of("padding", padding, 0, 0);
  w.dilation = pair_of("dilation", dilation, 1, 1);
  for (int i = 0; i < 2; ++i) {
    w.input[i] = x.size(2 + i);
    const int64_t room = w.input[i] + 2 * w.padding[i] - w.dilation[i] * (w.kernel[i] - 1) - 1;
    w.output[i] = room < 0 ? -((-room + w.stride[i] - 1) / w.stride[i]) + 1 : room / w.stride[i] + 1;
  }
  TORCH_CHECK_VALUE(w.output[0] >= 0 && w.output[1] >= 0, kOp, ": kernel_size: expected a window that fits the padded input [", w.input[0], ", ",
                    w.input[1], "], got an output of [", w.output[0], ", ", w.output[1], "]");
  return w;
}

template <class T, class O>
void run(const at::Tensor& x, const ActivityWindow* w, const std::optional<uint64_t>& seed, int64_t offset, O* out) {
  using A = Arith<T>;
  const int64_t positions = w ? x.size(0) * w->output[0] * w->output[1] : x.size(-1) ? x.numel() / x.size(-1) : 0;
  const std::vector<A> sign = seed ? signs_of<A>(*seed, offset, positions) : std::vector<A>();
  const A* signs = seed ? sign.data() : nullptr;
  if (positions == 0 || x.numel() == 0) return;
  if (w) return windowed(x.contiguous().const_data_ptr<T>(), x.size(0), x.size(1), *w, signs, out);
  if (const auto v = view_of(x)) return flat(x.const_data_ptr<T>(), *v, signs, out);
  const at::Tensor dense = x.contiguous();
  flat(dense.const_data_ptr<T>(), *view_of(dense), signs, out);
}

at::Tensor activity_cpu(const at::Tensor& x, bool is_signed, const std::optional<at::Tensor>& seed, int64_t offset, at::IntArrayRef kernel_size,
                        at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
  using at::ScalarType;
  const ScalarType type = x.scalar_type();
  TORCH_CHECK_TYPE(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half || type == ScalarType::Double, kOp,
                   ": x: expected float32, bfloat16, float16 or float64, got ", type);
  std::optional<uint64_t> key;
  if (is_signed) {
    TORCH_CHECK_VALUE(seed.has_value(), kOp, ": seed: expected an int64 tensor with signed=True, got None");
    TORCH_CHECK_TYPE(seed->scalar_type() == at::kLong, kOp, ": seed: expected int64, got ", seed->scalar_type());
    TORCH_CHECK_VALUE(seed->numel() == 1, kOp, ": seed: expected one number, got shape ", seed->sizes());
    TORCH_CHECK_VALUE(seed->device().is_cpu(), kOp, ": seed: expected a tensor on cpu, got ", seed->device(), "; move it with .to()");
    key = static_cast<uint64_t>(*seed->const_data_ptr<int64_t>());
  }
  TORCH_CHECK_VALUE(offset >= 0 && offset <= int64_t{1} << 62, kOp, ": offset: expected a number from 0 to 2^62, got ", offset);
  ActivityWindow window;
  const bool in_window = !kernel_size.empty();
  if (in_window) window = window_of(x, kernel_size, stride, padding, dilation);
  else TORCH_CHECK_VALUE(x.dim() > 0, kOp, ": x: expected [..., features], got a scalar");
  const ActivityWindow* w = in_window ? &window : nullptr;
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
