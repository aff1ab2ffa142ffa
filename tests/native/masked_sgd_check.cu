// Runs the kernels of masked_sgd_ and packed_sgd_ without Python or torch against a plain loop, bit for bit.
// check.h says how to build and run it.
#include "cuda/masked_sgd.cu"

#include <memory>
#include <string>

#include "check.h"

using namespace sparsekern;
using namespace sparsekern::cuda;

namespace {

struct Config {
  double weight_decay = 0.01, momentum = 0.9, lr = 0.1, dampening = 0.0;
  bool nesterov = false, maximize = false, first = false, zero = false, invert = false, clean = false;
  bool device_lr = false;
  float grad_scale = 0, found_inf = -1;  // 0 and -1: not given
  SgdScalars<float> scalars() const { return {weight_decay, momentum, lr, dampening, nesterov, maximize, first, zero, invert}; }
};

// What the whole thing means, element by element. `volatile` keeps a compiler from fusing.
template <class P>
void plain_step(P& param, float grad, P& buffer, const Config& c) {
  const SgdScalars<float> s = c.scalars();
  volatile float t, p = widen(param), b = widen(buffer), g = grad * (c.grad_scale != 0 ? 1.f / c.grad_scale : 1.f);
  if (s.maximize) g = 0.f - g;
  if (s.weight_decay != 0) t = p * s.weight_decay, g = g + t;
  if (c.momentum != 0) {
    if (s.is_first_step) b = g;
    else t = b * s.momentum, b = t, t = g * s.one_minus_dampening, b = b + t;
    if (s.nesterov) t = b * s.momentum, g = g + t;
    else g = b;
    narrow(b, buffer);
  }
  t = g * s.lr;
  narrow(p - t, param);
}

template <class P, class G>
struct Tensor {
  SgdKind kind;
  std::vector<P> param, buffer;
  std::vector<G> grad;
  std::vector<unsigned char> bools;  // the mask, whichever way it is passed
  std::vector<uint32_t> words;
  std::vector<int32_t> narrow_index;
  std::vector<int64_t> index;
  std::unique_ptr<Device<P>> d_param, d_buffer;
  std::unique_ptr<Device<G>> d_grad;
  std::unique_ptr<Device<unsigned char>> d_bools;
  std::unique_ptr<Device<uint32_t>> d_words;
  std::unique_ptr<Device<int32_t>> d_narrow;
  std::unique_ptr<Device<int64_t>> d_index;

  // Shifts (in elements) misalign param, grad, momentum and mask or positions.
  Tensor(SgdKind kind, size_t n, double sparsity, std::vector<size_t> shift, const Config& c) : kind(kind), bools(n, 1), words((n + 31) / 32, 0) {
    const bool gathers = kind == SgdKind::gather32 || kind == SgdKind::gather64;
    param = values<P>(n);
    buffer = values<P>(n);
    grad = values<G>(gathers ? 3 * n + 5 : n);
    for (size_t i = 0; i < n; ++i) {
      if (kind != SgdKind::none && !gathers) bools[i] = uniform() * 0.5 + 0.5 >= sparsity;
      if (bools[i]) words[i / 32] |= 1u << (i % 32);
      index.push_back(static_cast<int64_t>(3 * i + draw() % 3));
      narrow_index.push_back(static_cast<int32_t>(index[i]));
      const bool hidden = (bools[i] != 0) == c.invert;
      if (hidden && i % 7 == 0 && !gathers) narrow(NAN, grad[i]);  // must reach nothing
      if (hidden && i % 5 == 0 && c.zero && !c.clean) narrow(NAN, param[i]);
      if (hidden && c.clean) narrow(0.f, param[i]), narrow(0.f, buffer[i]);
    }
    d_param = std::make_unique<Device<P>>(param, shift[0]);
    d_grad = std::make_unique<Device<G>>(grad, shift[1]);
    if (c.momentum != 0) d_buffer = std::make_unique<Device<P>>(buffer, shift[2]);
    d_bools = std::make_unique<Device<unsigned char>>(bools, shift[3]);
    d_words = std::make_unique<Device<uint32_t>>(words, shift[3]);
    d_narrow = std::make_unique<Device<int32_t>>(narrow_index, shift[3]);
    d_index = std::make_unique<Device<int64_t>>(index, shift[3]);
  }

  SgdEntry entry() const {
    const void* where = kind == SgdKind::bools      ? static_cast<const void*>(d_bools->get())
                        : kind == SgdKind::bits     ? static_cast<const void*>(d_words->get())
                        : kind == SgdKind::gather32 ? static_cast<const void*>(d_narrow->get())
                        : kind == SgdKind::gather64 ? static_cast<const void*>(d_index->get())
                                                    : nullptr;
    return {d_param->get(), d_grad->get(), d_buffer ? d_buffer->get() : nullptr, where, static_cast<int64_t>(param.size()), 0, kind};
  }

  void expect(const Config& c, const std::string& name) {
    const bool gathers = kind == SgdKind::gather32 || kind == SgdKind::gather64;
    for (size_t i = 0; i < param.size() && c.found_inf <= 0; ++i) {
      if ((bools[i] != 0) != c.invert) plain_step(param[i], widen(grad[gathers ? index[i] : i]), buffer[i], c);
      else if (c.zero) narrow(0.f, param[i]), narrow(0.f, buffer[i]);
    }
    const std::vector<P> got = d_param->read(), got_buffer = d_buffer ? d_buffer->read() : buffer;
    for (size_t i = 0; i < param.size(); ++i)
      if (std::memcmp(&got[i], &param[i], sizeof(P)) != 0 || (d_buffer && std::memcmp(&got_buffer[i], &buffer[i], sizeof(P)) != 0)) {
        std::printf("%s: kind %d, element %zu of %zu (inside %d): param %.9g, expected %.9g; momentum %.9g, expected %.9g\n", name.c_str(),
                    static_cast<int>(kind), i, param.size(), bools[i], widen(got[i]), widen(param[i]), widen(got_buffer[i]), widen(buffer[i]));
        std::exit(1);
      }
    (void)d_grad->read();
  }
};

int cases = 0;

template <class P, class G>
void check(const std::string& name, std::vector<std::unique_ptr<Tensor<P, G>>>& list, const Config& c, bool packed) {
  std::vector<SgdEntry> entries;
  for (const auto& t : list)
    if (!t->param.empty()) entries.push_back(t->entry());  // the binding drops empty tensors
  const Device<float> lr({static_cast<float>(c.lr)}, 0), scale({c.grad_scale}, 0), inf({c.found_inf}, 0);
  Config given = c;
  if (c.device_lr) given.lr = 123;  // must not be used
  const SgdOptions options = {given.scalars(), c.clean, c.device_lr ? lr.get() : nullptr, c.grad_scale != 0 ? scale.get() : nullptr,
                              c.found_inf >= 0 ? inf.get() : nullptr};
  const DeviceProps props = {1};  // a small grid, so that blocks walk several pieces
  REQUIRE_CUDA((packed ? launch_packed_sgd : launch_masked_sgd)(entries.data(), entries.size(), dtype_of<P>, dtype_of<G>, options, props, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  for (const auto& t : list) t->expect(c, name);
  ++cases;
}

template <class P, class G>
void check_pair(const char* pair) {
  const std::vector<size_t> none = {0, 0, 0, 0};
  const std::vector<std::vector<size_t>> shifts = {none, {1, 1, 1, 1}, {3, 3, 3, 3}, {0, 1, 0, 0}, {1, 0, 2, 3}, {2, 2, 0, 1}};
  const std::vector<size_t> sizes = {0, 1, 2, 3, 4, 7, 8, 31, 32, 33, 255, 1023, 1024, 1025, 2061, 9001};
  const auto run = [&](const char* name, const Config& c, const std::vector<SgdKind>& kinds, double sparsity, size_t from, size_t to) {
    std::vector<std::unique_ptr<Tensor<P, G>>> list;
    for (size_t k = from; k < to; ++k) list.push_back(std::make_unique<Tensor<P, G>>(kinds[k % kinds.size()], sizes[k], sparsity, shifts[k % 6], c));
    const bool packed = kinds.back() == SgdKind::gather64;
    check(std::string(pair) + " " + name, list, c, packed);
  };
  const std::vector<SgdKind> masks = {SgdKind::bools, SgdKind::bits, SgdKind::none}, gathers = {SgdKind::none, SgdKind::gather32, SgdKind::gather64};
  Config c;
  run("keep", c, masks, 0.5, 0, sizes.size());
  run("packed", c, gathers, 0, 0, sizes.size());
  c.zero = true;
  run("zero, one kind shifted", c, {SgdKind::bits}, 0.9, 5, 16);
  run("zero", c, {SgdKind::bools}, 0.9, 5, 16);
  c.clean = true;
  run("clean", c, {SgdKind::bits, SgdKind::bools}, 0.95, 8, 16);
  c = Config();
  c.invert = true;
  run("invert", c, masks, 0.3, 3, 16);
  c.zero = true;
  run("invert, zero", c, masks, 0.3, 3, 16);
  c = Config();
  c.momentum = 0;
  c.maximize = true;
  run("no momentum, maximize", c, masks, 0.5, 8, 15);
  c = Config();
  c.nesterov = true;
  c.device_lr = true;
  c.grad_scale = 3;
  c.found_inf = 0;
  run("nesterov, lr and scale on the device", c, masks, 0.5, 8, 15);
  run("packed, the same", c, gathers, 0, 8, 15);
  c.found_inf = 1;
  run("found_inf", c, masks, 0.5, 10, 12);
  c = Config();
  c.first = true;
  c.dampening = 0.5;
  c.weight_decay = 0;
  run("first step", c, masks, 0.5, 8, 15);
  c.first = false;
  run("dampening", c, masks, 0.5, 8, 15);
}

void check_long_lists() {
  for (const size_t count : {size_t(81), size_t(700)}) {  // the long table; two launches
    Config c;
    std::vector<std::unique_ptr<Tensor<float, float>>> list;
    for (size_t k = 0; k < count; ++k)
      list.push_back(std::make_unique<Tensor<float, float>>(SgdKind::bits, 1 + k % 70, 0.5, std::vector<size_t>{0, 0, 0, 0}, c));
    check(std::to_string(count) + " tensors", list, c, false);
  }
}

#ifdef __CUDACC__
// 12 tensors of 2M elements (more take the host too long to draw); the median of 20 launches by events, as bytes over time.
void bench() {
  const DeviceProps device = this_device();
  Config c;
  c.zero = c.clean = true;
  const size_t n = 2 << 20, count = 12;
  for (const SgdKind kind : {SgdKind::none, SgdKind::bools, SgdKind::bits})
    for (const double sparsity : {0.0, 0.9, 0.95, 0.98}) {
      if (kind == SgdKind::none && sparsity > 0) continue;
      std::vector<std::unique_ptr<Tensor<float, float>>> list;
      std::vector<SgdEntry> entries;
      for (size_t k = 0; k < count; ++k) {
        list.push_back(std::make_unique<Tensor<float, float>>(kind, n, sparsity, std::vector<size_t>{0, 0, 0, 0}, c));
        entries.push_back(list.back()->entry());
      }
      const SgdOptions options = {c.scalars(), c.clean, nullptr, nullptr, nullptr};
      const float us = median_us([&] { return launch_masked_sgd(entries.data(), count, DType::f32, DType::f32, options, device, nullptr); });
      const double mask = kind == SgdKind::bools ? 1 : kind == SgdKind::bits ? 0.125 : 0;
      std::printf(
          "{\"kernel\": \"masked_sgd_kernel\", \"elements\": %zu, \"mask\": \"%s\", \"sparsity\": %.2f, \"us\": %.1f, \"dense_gb_per_s\": %.0f}\n",
          n * count,
          kind == SgdKind::bools  ? "bools"
          : kind == SgdKind::bits ? "bits"
                                  : "none",
          sparsity, us, n * count * (20 + mask) / us * 1e-3);
    }
}
#else
void bench() {}
#endif

}  // namespace

int main(int argc, char** argv) {
  if (wants_bench(argc, argv)) return bench(), 0;
  check_pair<float, float>("fp32/fp32");
  check_pair<float, __nv_bfloat16>("fp32/bf16");
  check_pair<float, __half>("fp32/fp16");
  check_pair<__nv_bfloat16, __nv_bfloat16>("bf16/bf16");
  check_pair<__half, __half>("fp16/fp16");
  check_long_lists();
  std::printf("ok: %d launches agree bit for bit\n", cases);
}
