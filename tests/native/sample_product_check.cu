// Runs csr_setdiff, sample_product and gse_candidates without Python or torch against plain loops.
#include "cuda/sample_product.cu"

#include "cuda/csr_rows.cu"
#include "cuda/csr_setdiff.cu"
#include "cuda/device_scan.cu"

#include "csr_check.h"

using namespace sparsekern::cuda;

namespace {

const DeviceProps kProps = {1};

struct PlainTable {
  std::vector<uint64_t> sums;
  explicit PlainTable(const std::vector<float>& weights) {
    float most = 0;
    for (const float w : weights) most = w > most ? w : most;
    uint64_t total = 0;
    for (const float w : weights) {
      const double scaled = std::nearbyint(static_cast<double>(w) / static_cast<double>(most) * 274877906944.0);
      total += most > 0 ? (w > 0 ? (scaled < 1 ? 1 : static_cast<uint64_t>(scaled)) : 0) : 1;
      sums.push_back(total);
    }
  }
  int32_t item(uint64_t uniform) const {
    const uint64_t place = sparsekern::multiply_high(uniform, sums.back());
    return static_cast<int32_t>(std::upper_bound(sums.begin(), sums.end(), place) - sums.begin());
  }
};

std::vector<float> weights(int64_t n, int kind) {
  std::vector<float> out(n);
  for (float& w : out) w = kind == 0 ? uniform() : kind == 1 ? std::pow(std::fabs(uniform()), 30.f) : 0.f;
  if (n > 3 && kind == 1) out[n / 2] = NAN, out[n / 3] = 1e-45f;
  return out;
}

void check_draws(int64_t n_rows, int64_t n_cols, int kind, int64_t seed, int64_t count, size_t shift) {
  const std::vector<float> rows = weights(n_rows, kind), cols = weights(n_cols, kind);
  const PlainTable row_table(rows), col_table(cols);
  std::vector<int32_t> want_rows, want_cols;
  for (int64_t i = 0; i < count; ++i) {
    const sparsekern::Uniforms u = sparsekern::sample_uniforms(static_cast<uint64_t>(seed), static_cast<uint64_t>(i));
    want_rows.push_back(row_table.item(u.row)), want_cols.push_back(col_table.item(u.col));
  }
  const Device<float> d_rows(rows, shift), d_cols(cols, shift);
  const Device<int64_t> d_seed({seed}, shift);
  const Device<int32_t> out_rows(std::vector<int32_t>(count), shift), out_cols(std::vector<int32_t>(count), shift);
  const Device<unsigned char> tables = workspace_of(sample_tables_bytes(n_rows, n_cols));
  REQUIRE_CUDA(launch_sample_tables({d_rows.get(), d_cols.get(), n_rows, n_cols}, tables.get(), kProps, nullptr));
  REQUIRE_CUDA(launch_sample_draws(n_rows, n_cols, tables.get(), {d_seed.get(), nullptr, count, out_rows.get(), out_cols.get()}, kProps, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  const std::string what = "draws from " + std::to_string(n_rows) + " x " + std::to_string(n_cols);
  expect(what + ": rows", out_rows.read(), want_rows);
  expect(what + ": cols", out_cols.read(), want_cols);
  (void)tables.read();
}

// What is left of `drawn`, sorted, and -1 up to `count`.
void expect_places(const std::string& what, const std::set<Place>& want, int64_t count, const Device<int32_t>& rows, const Device<int32_t>& cols,
                   const Device<int64_t>& found) {
  std::vector<int32_t> want_rows, want_cols;
  for (const Place& at : want) want_rows.push_back(static_cast<int32_t>(at.first)), want_cols.push_back(static_cast<int32_t>(at.second));
  want_rows.resize(count, -1), want_cols.resize(count, -1);
  expect(what + ": count", found.read(), {static_cast<int64_t>(want.size())});
  expect(what + ": rows", rows.read(), want_rows);
  expect(what + ": cols", cols.read(), want_cols);
}

void check_setdiff(int64_t n_rows, int64_t n_cols, double density, int64_t count, bool wide, size_t shift) {
  const Pattern p(n_rows, n_cols, density, wide);
  std::vector<int32_t> rows, cols;
  std::set<Place> want;
  for (int64_t i = 0; i < count; ++i) {
    rows.push_back(static_cast<int32_t>(draw() % (n_rows + 2)) - 1), cols.push_back(static_cast<int32_t>(draw() % (n_cols + 2)) - 1);
    const Place at(rows[i], cols[i]);
    if (rows[i] >= 0 && cols[i] >= 0 && rows[i] < n_rows && cols[i] < n_cols && !p.active.count(at)) want.insert(at);
  }
  const DevicePattern d(p, shift);
  const Device<int32_t> d_rows(rows, shift), d_cols(cols, shift);
  const Device<int64_t> found({-7}, shift);
  const Device<unsigned char> workspace = workspace_of(csr_setdiff_workspace_bytes(count, n_rows));
  const SetDiff args = {d_rows.get(), d_cols.get(), count, d.view, d_rows.get(), d_cols.get(), found.get(), nullptr, nullptr};  // in place
  REQUIRE_CUDA(launch_csr_setdiff(args, workspace.get(), kProps, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  expect_places("setdiff " + std::to_string(n_rows) + " x " + std::to_string(n_cols), want, count, d_rows, d_cols, found);
  (void)workspace.read(), (void)d.col.read();
}

void check_candidates(int64_t n_rows, int64_t n_cols, double density, int64_t count, int64_t rounds) {
  const Pattern p(n_rows, n_cols, density, false);
  const std::vector<float> rows = weights(n_rows, 0), cols = weights(n_cols, 0);
  const PlainTable row_table(rows), col_table(cols);
  std::set<Place> want, rest;
  uint64_t number = 0;
  for (int64_t round = 0; round < rounds; ++round)
    for (int64_t left = count - static_cast<int64_t>(want.size()); left > 0; --left) {
      const sparsekern::Uniforms u = sparsekern::sample_uniforms(11, number++);
      const Place at(row_table.item(u.row), col_table.item(u.col));
      if (!p.active.count(at)) want.insert(at);
    }
  for (int64_t r = 0; r < n_rows; ++r)
    for (int64_t c = 0; c < n_cols; ++c)
      if (!p.active.count({r, c})) rest.insert({r, c});
  const DevicePattern d(p, 0);
  const Device<float> d_rows(rows, 1), d_cols(cols, 1);
  const Device<int64_t> seed({11}, 0), found({0}, 0);
  const auto inactive = static_cast<int64_t>(rest.size());
  const Device<int32_t> out_rows(std::vector<int32_t>(count), 1), out_cols(std::vector<int32_t>(count), 1);
  const Device<int32_t> rest_rows(std::vector<int32_t>(inactive), 1), rest_cols(std::vector<int32_t>(inactive), 1);
  const Device<unsigned char> workspace = workspace_of(gse_candidates_workspace_bytes(count, n_rows, n_cols));
  REQUIRE_CUDA(launch_gse_candidates({d_rows.get(), d_cols.get(), n_rows, n_cols}, d.view, seed.get(), count, rounds, out_rows.get(), out_cols.get(),
                                     found.get(), workspace.get(), kProps, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  expect_places("candidates", want, count, out_rows, out_cols, found);
  REQUIRE_CUDA(launch_csr_complement(d.view, inactive, rest_rows.get(), rest_cols.get(), found.get(), kProps, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  expect_places("complement", rest, inactive, rest_rows, rest_cols, found);
  (void)workspace.read();
}

#ifdef __CUDACC__
void bench() {
  const DeviceProps props = this_device();
  const int64_t side = 4096, count = 1 << 20;
  const Pattern p(side, side, 0.1, false), full(side, side, 0.5, false);
  const DevicePattern d(p, 0), f(full, 0);
  const Device<float> w(weights(side, 0), 0);
  const Device<int64_t> seed({11}, 0), found({0}, 0);
  const Device<int32_t> rows(std::vector<int32_t>(side * side), 0), cols(std::vector<int32_t>(side * side), 0);
  const Device<unsigned char> workspace = workspace_of(gse_candidates_workspace_bytes(count, side, side));
  const SampleWeights both = {w.get(), w.get(), side, side};
  const auto show = [&](const char* op, float us, double bytes) {
    std::printf("{\"op\": \"%s\", \"shape\": \"4096x4096, 1M samples\", \"us\": %.1f, \"gb_per_s\": %.0f}\n", op, us, bytes / us * 1e-3);
  };
  show("sample_product", median_us([&] {
         const int status = launch_sample_tables(both, workspace.get(), props, nullptr);
         return status ? status
                       : launch_sample_draws(side, side, workspace.get(), {seed.get(), nullptr, count, rows.get(), cols.get()}, props, nullptr);
       }),
       8.0 * count);
  const SetDiff difference = {rows.get(), cols.get(), count, d.view, rows.get() + count, cols.get() + count, found.get(), nullptr, nullptr};
  show("csr_setdiff", median_us([&] { return launch_csr_setdiff(difference, workspace.get(), props, nullptr); }), 44.0 * count + 4.0 * p.nnz());
  for (const int64_t rounds : {1, 2})
    show(rounds == 1 ? "gse_candidates, 1 round" : "gse_candidates, 2 rounds", median_us([&] {
           return launch_gse_candidates(both, d.view, seed.get(), count, rounds, rows.get(), cols.get(), found.get(), workspace.get(), props,
                                        nullptr);
         }),
         rounds * (52.0 * count + 4.0 * p.nnz()));
  const int64_t rest = side * side - full.nnz();
  show("csr_complement", median_us([&] { return launch_csr_complement(f.view, rest, rows.get(), cols.get(), found.get(), props, nullptr); }),
       8.0 * rest);
}
#else
void bench() {}
#endif

}  // namespace

int main(int argc, char** argv) {
  if (wants_bench(argc, argv)) return bench(), 0;
  check_draws(1, 1, 0, 0, 33, 0);
  check_draws(50, 40, 0, -3, 700, 1);
  check_draws(3000, 7, 1, int64_t{1} << 62, 500, 0);
  check_draws(5, 900, 2, 99, 500, 3);
  check_setdiff(1, 1, 0, 40, false, 0);
  check_setdiff(37, 50, 0.3, 900, true, 1);
  check_setdiff(3, 4100, 0.1, 600, false, 3);
  check_setdiff(200, 9, 0.5, 700, true, 2);
  check_setdiff(2, 70000, 0.01, 300, false, 0);
  check_setdiff(0, 5, 0, 9, false, 0);
  check_setdiff(5, 5, 1, 99, false, 0);
  check_candidates(30, 40, 0.2, 300, 3);
  check_candidates(1, 70, 0.6, 99, 1);
  check_candidates(90, 3, 0.9, 50, 2);
  std::printf("ok: %d results are exact\n", cases);
}
