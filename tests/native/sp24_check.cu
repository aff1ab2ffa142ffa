// Runs the kernels of sp24_compress and sp24_decompress against plain loops. Arguments and builds: check.h.
#include "cuda/sp24.cu"

#include "check.h"

using namespace sparsekern;
using namespace sparsekern::cuda;

namespace {

int cases = 0;

// Halves as bits: random ones, or few different values: zeros of both signs, ones, NaN and infinities.
std::vector<uint16_t> elements(size_t n, bool half, bool few) {
  const uint16_t inf = half ? 0x7c00 : 0x7f80, one = half ? 0x3c00 : 0x3f80;
  const uint16_t some[] = {0,
                           0x8000,
                           one,
                           static_cast<uint16_t>(one | 0x8000),
                           inf,
                           static_cast<uint16_t>(inf | 0x8000),
                           static_cast<uint16_t>(inf + 1),
                           static_cast<uint16_t>(inf | 0x8011),
                           static_cast<uint16_t>(one + 1),
                           1};
  std::vector<uint16_t> out(n);
  for (uint16_t& x : out) x = few ? some[draw() % 10] : static_cast<uint16_t>(draw());
  return out;
}

float magnitude(uint16_t bits, bool half) {
  __half h;
  h = *reinterpret_cast<const __half*>(&bits);
  const float x = std::fabs(half ? __half2float(h) : [&] {
    const uint32_t word = uint32_t{bits} << 16;
    float f;
    std::memcpy(&f, &word, 4);
    return f;
  }());
  return x != x ? 0.f : std::min(x, 0x1p124f);
}

// The definition: the marked are ranked by magnitude, NaN last, the first of equals first; then what is not marked fills up.
void pick(const uint16_t (&x)[4], unsigned marked, uint16_t inf, uint16_t* values, unsigned& bits) {
  int order[4] = {0, 1, 2, 3};
  auto key = [&](int i) {
    const int size = x[i] & 0x7fff;
    return !(marked >> i & 1) ? -2 : size > inf ? -1 : size;
  };
  std::stable_sort(order, order + 4, [&](int a, int b) { return key(a) > key(b); });
  std::sort(order, order + 2);
  bits = static_cast<unsigned>(order[0] | order[1] << 2);
  for (int k = 0; k < 2; ++k) values[k] = marked >> order[k] & 1 ? x[order[k]] : 0;
}

// The order sm80 by counting through it: tiles of 32 rows and 2 words, down, then right.
size_t place(bool sm80, size_t rows, size_t words, size_t r, size_t w) {
  if (!sm80) return r * words + w;
  size_t at = (w / 2 * (rows / 32) + r / 32) * 64;
  for (size_t low = 0; low < 8; ++low)
    for (size_t half = 0; half < 2; ++half)
      for (size_t word = 0; word < 2; ++word)
        for (size_t eight = 0; eight < 2; ++eight, ++at)
          if (r % 32 == 16 * half + 8 * eight + low && w % 2 == word) return at;
  return at;
}

struct Packed {
  std::vector<uint16_t> v, e;
};

Packed pack(const std::vector<uint16_t>& x, const std::vector<uint8_t>& mask, size_t rows, size_t cols, bool turned, uint16_t inf, bool sm80) {
  Packed out = {std::vector<uint16_t>(rows * cols / 2), std::vector<uint16_t>(rows * cols / 16)};
  for (size_t r = 0; r < rows; ++r)
    for (size_t g = 0; g < cols / 4; ++g) {
      uint16_t four[4];
      unsigned marked = 0, bits;
      for (size_t k = 0; k < 4; ++k) {
        const size_t at = turned ? (4 * g + k) * rows + r : r * cols + 4 * g + k;
        four[k] = x[at];
        marked |= (mask.empty() || mask[at] != 0 ? 1u : 0u) << k;
      }
      pick(four, marked, inf, &out.v[r * cols / 2 + 2 * g], bits);
      out.e[place(sm80, rows, cols / 16, r, g / 4)] |= static_cast<uint16_t>(bits << 4 * (g % 4));
    }
  return out;
}

// The best pattern of every block, by all sums of 6^4 rows whose columns come out even.
std::vector<uint8_t> transposable(const std::vector<uint16_t>& x, size_t rows, size_t cols, bool half) {
  std::vector<uint8_t> mask(rows * cols);
  for (size_t r = 0; r < rows; r += 4)
    for (size_t c = 0; c < cols; c += 4) {
      float best = -1.f;
      for (int number = 0; number < 1296; ++number) {
        const int pair[4] = {number / 216, number / 36 % 6, number / 6 % 6, number % 6};
        int count[4] = {};
        float sum[4];
        for (int i = 0; i < 4; ++i) {
          const int a = kKeptPairs[pair[i]][0], b = kKeptPairs[pair[i]][1];
          ++count[a], ++count[b];
          sum[i] = magnitude(x[(r + i) * cols + c + a], half) + magnitude(x[(r + i) * cols + c + b], half);
        }
        if (count[0] != 2 || count[1] != 2 || count[2] != 2 || count[3] != 2 || (sum[0] + sum[1]) + (sum[2] + sum[3]) <= best) continue;
        best = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        for (int k = 0; k < 16; ++k)
          mask[(r + k / 4) * cols + c + k % 4] = kKeptPairs[pair[k / 4]][0] == k % 4 || kKeptPairs[pair[k / 4]][1] == k % 4;
      }
    }
  return mask;
}

void same(const char* what, const std::vector<uint16_t>& got, const std::vector<uint16_t>& want, size_t rows, size_t cols) {
  for (size_t i = 0; i < want.size(); ++i)
    if (got[i] != want[i]) {
      std::printf("%s of [%zu, %zu]: element %zu is %04x, expected %04x\n", what, rows, cols, i, got[i], want[i]);
      std::exit(1);
    }
}

void check(size_t rows, size_t cols, bool half, bool few, MaskKind kind, bool both, bool sm80, size_t shift) {
  const std::vector<uint16_t> x = elements(rows * cols, half, few);
  std::vector<uint8_t> mask;
  if (kind != MaskKind::none) {
    mask = both ? transposable(elements(rows * cols, half, false), rows, cols, half) : std::vector<uint8_t>(rows * cols);
    for (uint8_t& m : mask) m = both ? (draw() % 8 ? m : 0) : static_cast<uint8_t>(draw() % 3 ? 1 + draw() % 255 : 0);
  }
  std::vector<uint32_t> words((mask.size() + 31) / 32, 0);
  for (size_t i = 0; i < mask.size(); ++i) words[i / 32] |= static_cast<uint32_t>(mask[i] != 0) << (i % 32);
  const Device<uint16_t> from(x, shift), v(std::vector<uint16_t>(rows * cols / 2, 7), 0), e(std::vector<uint16_t>(rows * cols / 16, 7), 0);
  const Device<uint16_t> vt(std::vector<uint16_t>(rows * cols / 2, 7), 0), et(std::vector<uint16_t>(rows * cols / 16, 7), 0);
  const Device<uint16_t> back(std::vector<uint16_t>(rows * cols, 7), 0);
  const Device<uint8_t> bytes(mask, shift);
  const Device<uint32_t> bits(words, shift);
  const uint16_t inf = half ? 0x7c00 : 0x7f80;
  const MaskView view = {kind, kind == MaskKind::bools ? static_cast<const void*>(bytes.get()) : kind == MaskKind::bits ? bits.get() : nullptr};
  const auto down = static_cast<int64_t>(rows), across = static_cast<int64_t>(cols);
  REQUIRE_CUDA(launch_sp24_compress(
      {from.get(), view, inf, sm80, down, across, v.get(), e.get(), both ? vt.get() : nullptr, both ? et.get() : nullptr}, {1}, nullptr));
  REQUIRE_CUDA(launch_sp24_decompress({v.get(), e.get(), sm80, down, across, back.get()}, {1}, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  if (both && kind == MaskKind::none) mask = transposable(x, rows, cols, half);
  const Packed want = pack(x, mask, rows, cols, false, inf, sm80);
  same("v", v.read(), want.v, rows, cols);
  same("e", e.read(), want.e, rows, cols);
  std::vector<uint16_t> dense(rows * cols, 0);
  for (size_t i = 0; i < rows * cols / 2; ++i) {
    const size_t r = i / (cols / 2), group = i % (cols / 2) / 2, word = want.e[place(sm80, rows, cols / 16, r, group / 4)];
    dense[r * cols + 4 * group + (word >> (4 * (group % 4) + 2 * (i % 2)) & 3)] = want.v[i];
  }
  same("the unpacked matrix", back.read(), dense, rows, cols);
  if (both) {
    const Packed turned = pack(x, mask, cols, rows, true, inf, sm80);
    same("vt", vt.read(), turned.v, cols, rows);
    same("et", et.read(), turned.e, cols, rows);
  }
  cases += 2;
}

#ifdef __CUDACC__
void bench() {
  const size_t side = 8192, n = side * side;
  const Device<uint16_t> x(elements(n, false, false), 0), v(std::vector<uint16_t>(n / 2), 0), e(std::vector<uint16_t>(n / 16), 0);
  const Device<uint16_t> vt(std::vector<uint16_t>(n / 2), 0), et(std::vector<uint16_t>(n / 16), 0), back(std::vector<uint16_t>(n), 0);
  const Device<uint8_t> mask(std::vector<uint8_t>(n, 1), 0);
  const DeviceProps props = this_device();
  auto report = [](const char* shape, float us, double bytes) {
    std::printf("{\"op\": \"sp24\", \"shape\": \"%s\", \"us\": %.1f, \"gb_per_s\": %.0f}\n", shape, us, bytes / us * 1e-3);
  };
  Sp24Pack args = {x.get(), {}, 0x7f80, true, 8192, 8192, v.get(), e.get(), nullptr, nullptr};
  report("compress", median_us([&] { return launch_sp24_compress(args, props, nullptr); }), n * 3.125);
  args.vt = vt.get(), args.et = et.get();
  report("compress both ways, searched", median_us([&] { return launch_sp24_compress(args, props, nullptr); }), n * 4.25);
  args.mask = {MaskKind::bools, mask.get()};
  report("compress both ways, bool mask", median_us([&] { return launch_sp24_compress(args, props, nullptr); }), n * 5.25);
  const Sp24Unpack unpack = {v.get(), e.get(), true, 8192, 8192, back.get()};
  report("decompress", median_us([&] { return launch_sp24_decompress(unpack, props, nullptr); }), n * 3.125);
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
  for (const MaskKind kind : {MaskKind::none, MaskKind::bools, MaskKind::bits})
    for (const bool few : {false, true})
      for (const bool half : {false, true})
        for (const bool sm80 : {false, true}) {
          check(32, 64, half, few, kind, false, sm80, 0);
          check(96, 640, half, few, kind, false, sm80, few ? 1 : 8);
          check(64, 64, half, few, kind, true, sm80, few ? 3 : 0);
          check(192, 192, half, few, kind, true, sm80, 0);
        }
  std::printf("ok: %d launches agree\n", cases);
}
