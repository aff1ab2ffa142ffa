// Runs the kernels of csr_sddmm and coo_sddmm without Python or torch against plain loops in double.
#include "cuda/csr_sddmm.cu"

#include <memory>

#include "check.h"

using namespace sparsekern;
using namespace sparsekern::cuda;

namespace {

int cases = 0;

template <class T>
constexpr SddmmType type_of = sizeof(T) == 4                          ? SddmmType::f32
                              : std::is_same<T, __nv_bfloat16>::value ? SddmmType::bf16
                                                                      : SddmmType::f16;

// How a matrix lies in memory: `pad` more elements, not numbers, between its rows (columns), and `shift` before them.
struct Layout {
  bool by_columns;
  int64_t pad;
  size_t shift;
};

template <class T>
struct Matrix {
  int64_t stride;
  bool by_columns;
  std::vector<T> host;
  std::unique_ptr<Device<T>> device;

  Matrix(int64_t height, int64_t width, Layout layout) : stride((layout.by_columns ? height : width) + layout.pad), by_columns(layout.by_columns) {
    host.resize(static_cast<size_t>((by_columns ? width : height) * stride));
    for (T& x : host) narrow(NAN, x);
    for (int64_t i = 0; i < height; ++i)
      for (int64_t j = 0; j < width; ++j) narrow(uniform(), at(i, j));
    device = std::make_unique<Device<T>>(host, layout.shift);
  }
  T& at(int64_t i, int64_t j) { return host[static_cast<size_t>(by_columns ? i + j * stride : i * stride + j)]; }
  SddmmOperand operand() const { return {device->get(), stride, by_columns}; }
};

// A pattern and the same entries as a list; on the device with row pointers of both widths.
struct Pattern {
  int64_t rows, cols;
  std::vector<int64_t> crow{0};
  std::vector<int32_t> crow_narrow, row, col;
  std::unique_ptr<Device<int64_t>> d_crow, d_count;
  std::unique_ptr<Device<int32_t>> d_crow_narrow, d_row, d_col;

  Pattern(int64_t rows, int64_t cols, double density, int64_t past = 0) : rows(rows), cols(cols) {
    for (int64_t r = 0; r < rows; ++r) {
      if (r % 5 != 3)  // some rows are empty
        for (int64_t c = 0; c < cols; ++c)
          if (0.5 + 0.5 * uniform() < density) row.push_back(static_cast<int32_t>(r)), col.push_back(static_cast<int32_t>(c));
      crow.push_back(static_cast<int64_t>(col.size()));
    }
    const int64_t valid = crow.back();
    row.resize(row.size() + past, -1), col.resize(col.size() + past, 1 << 30);  // not looked at
    crow_narrow.assign(crow.begin(), crow.end());
    d_crow = std::make_unique<Device<int64_t>>(crow, 0), d_crow_narrow = std::make_unique<Device<int32_t>>(crow_narrow, 1);
    d_count = std::make_unique<Device<int64_t>>(std::vector<int64_t>{valid}, 0);
    d_row = std::make_unique<Device<int32_t>>(row, 3), d_col = std::make_unique<Device<int32_t>>(col, 1);
  }
  SddmmPlaces pattern(bool wide) const {
    const void* pointers = wide ? static_cast<const void*>(d_crow->get()) : d_crow_narrow->get();
    return {pointers, nullptr, nullptr, d_col->get(), static_cast<int64_t>(col.size()), rows, cols, wide};
  }
  SddmmPlaces list() const { return {nullptr, d_row->get(), d_count->get(), d_col->get(), static_cast<int64_t>(col.size()), rows, cols, true}; }
};

template <class T>
void expect(const Pattern& p, const std::vector<double>& want, const Device<T>& out, double tolerance, const char* what) {
  const std::vector<T> got = out.read();
  for (size_t e = 0; e < got.size(); ++e) {
    const double right = p.row[e] < 0 ? 0 : want[e], wrong = std::fabs(widen(got[e]) - right);
    if (!(wrong <= tolerance * (1 + std::fabs(right)))) {
      std::printf("%s: entry %zu of %zu (%d, %d): %.9g, expected %.9g\n", what, e, got.size(), p.row[e], p.col[e], widen(got[e]), right);
      std::exit(1);
    }
  }
  ++cases;
}

template <class T>
void check(int64_t rows, int64_t cols, int64_t n, double density, Layout of_a, Layout of_b) {
  Matrix<T> a(rows, n, of_a), b(cols, n, of_b);
  const Pattern pattern(rows, cols, density), list(rows, cols, density, 37);
  const double tolerance = sizeof(T) == 4 ? 1e-5 : std::is_same<T, __half>::value ? 2e-3 : 1e-2;
  const auto dots = [&](const Pattern& p) {
    std::vector<double> want(p.col.size(), 0);
    for (size_t e = 0; e < want.size() && p.row[e] >= 0; ++e)
      for (int64_t j = 0; j < n; ++j) want[e] += static_cast<double>(widen(a.at(p.row[e], j))) * widen(b.at(p.col[e], j));
    return want;
  };
  const auto run = [&](SddmmWay way, const Pattern& p, const SddmmPlaces& places, auto zero, SddmmType out_type, double close, const char* what) {
    using Out = decltype(zero);
    Device<Out> out(std::vector<Out>(p.col.size()), 1);
    const SddmmCall call = {type_of<T>, out_type, places, a.operand(), b.operand(), n, out.get()};
    const Device<unsigned char> workspace(std::vector<unsigned char>(sddmm_workspace_bytes(call, way)), 64);
    REQUIRE_CUDA(launch_sddmm(call, way, workspace.get(), {2, 6000}, nullptr));
    REQUIRE_CUDA(cudaDeviceSynchronize());
    (void)workspace.read();
    expect(p, dots(p), out, close, what);
    return out.read();
  };
  for (const SddmmWay way : {SddmmWay::gather, SddmmWay::staged}) {
    const std::vector<T> once = run(way, pattern, pattern.pattern(true), T(), type_of<T>, tolerance, "pattern");
    if (way == SddmmWay::staged && of_a.shift != 0) continue;  // blocks of 640 emulated threads take long
    const std::vector<T> again = run(way, pattern, pattern.pattern(false), T(), type_of<T>, tolerance, "int32 pointers");
    if (std::memcmp(once.data(), again.data(), once.size() * sizeof(T)) != 0) std::printf("two runs differ\n"), std::exit(1);
    run(way, pattern, pattern.pattern(true), float(), SddmmType::f32, 1e-5, "fp32 out");
  }
  run(SddmmWay::gather, list, list.list(), T(), type_of<T>, tolerance, "list");
}

// Entries picked from a product of made-up numbers, in bands of rows.
template <class T>
void check_sample(int64_t rows, int64_t cols, double density) {
  std::vector<float> dense(rows * cols);
  for (float& x : dense) x = uniform();
  const Device<float> product(dense, 0);
  for (const int64_t past : {0, 300}) {
    const Pattern p(rows, cols, density, past);
    std::vector<double> want(p.col.size(), 0);
    for (size_t e = 0; e < want.size() && p.row[e] >= 0; ++e) want[e] = dense[p.row[e] * cols + p.col[e]];
    Device<T> out(values<T>(p.col.size()), 1);
    for (int64_t first = 0, height = 7; first < rows; first += height)
      REQUIRE_CUDA(launch_sddmm_sample(past ? p.list() : p.pattern(first % 2), product.get() + first * cols, first, std::min(height, rows - first),
                                       out.get(), type_of<T>, {2}, nullptr));
    REQUIRE_CUDA(cudaDeviceSynchronize());
    expect(p, want, out, sizeof(T) == 4 ? 0 : 4e-3, past ? "sample, list" : "sample, pattern");
  }
}

template <class T>
void check_type() {
  const int64_t chunk = 16 / sizeof(T);
  const Layout plain = {false, 0, 0}, padded = {false, chunk, 0}, shifted = {false, chunk, 1}, odd = {false, 1, 0}, columns = {true, 0, 0},
               wide_columns = {true, 3, 1};
  for (const Layout& x : {plain, padded, shifted, odd, columns, wide_columns}) {
    if (sizeof(T) == 2 && x.pad == 1) continue;
    check<T>(13, 31, 9 * chunk, 0.2, x, plain);
    check<T>(6, 40, 67, 0.2, shifted, x);
  }
  check<T>(1, 1, 1, 1, plain, plain);
  check<T>(3, 50, 5 * 128, 1, columns, plain);
  check<T>(70, 3, 2 * chunk, 0.02, plain, columns);
  check<T>(4, 6, 5000, 0.5, columns, padded);  // two passes
  check_sample<T>(23, 41, 0.2);
  check_sample<T>(20, 9, 1);
  check_sample<T>(3, 700, 0.9);  // several lanes' worth in a row
}

#ifdef __CUDACC__
// Ours of the ways (the dense one is torch's product), 4096 x 4096.
template <class T>
void bench_type(const char* name) {
  for (const double density : {0.05, 0.02, 0.01})
    for (const int64_t n : {128, 512, 4096})
      for (const SddmmWay way : {SddmmWay::gather, SddmmWay::staged}) {
        const bool by_columns = n == 512;
        const Pattern p(4096, 4096, density * 1.25);  // a fifth of the rows is empty
        Matrix<T> a(4096, n, {by_columns, 0, 0}), b(4096, n, {by_columns, 0, 0});
        Device<T> out(std::vector<T>(p.col.size()), 0);
        const SddmmCall call = {type_of<T>, type_of<T>, p.pattern(false), a.operand(), b.operand(), n, out.get()};
        const Device<unsigned char> workspace(std::vector<unsigned char>(sddmm_workspace_bytes(call, way)), 64);
        const float us = median_us([&] { return launch_sddmm(call, way, workspace.get(), this_device(), nullptr); });
        std::printf("{\"op\": \"csr_sddmm\", \"shape\": \"4096x4096, n %ld, nnz %zu, %s, %s, %s\", \"us\": %.1f, \"gb_per_s\": %.0f}\n",
                    static_cast<long>(n), p.col.size(), name, by_columns ? "column-major" : "row-major",
                    way == SddmmWay::staged ? "staged" : "gather", us, 1e-3 * p.col.size() * n * sizeof(T) / us);
      }
}
#endif

}  // namespace

int main(int argc, char** argv) {
  if (wants_bench(argc, argv)) {
#ifdef __CUDACC__
    bench_type<float>("fp32");
    bench_type<__nv_bfloat16>("bf16");
#endif
    return 0;
  }
  check_type<float>();
  check_type<__nv_bfloat16>();
  check_type<__half>();
  std::printf("ok: %d results agree\n", cases);
}
