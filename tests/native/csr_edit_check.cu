// Runs csr_from_mask, csr_validate and csr_replace without Python or torch against plain loops.
#include "cuda/csr_edit.cu"

#include "cuda/csr_rows.cu"
#include "cuda/device_scan.cu"

#include <map>

#include "csr_check.h"

using namespace sparsekern::cuda;

namespace {

const DeviceProps kProps = {1};

template <class V>
void check_mask(int64_t rows, int64_t cols, double density, bool wide, size_t shift, int64_t missing) {
  const Pattern p(rows, cols, density, wide);
  std::vector<unsigned char> mask(static_cast<size_t>(rows * cols), 0);
  std::vector<V> values, want_val;
  for (size_t i = 0; i < mask.size(); ++i) values.push_back(static_cast<V>(i % 251 + 1));
  for (const Place& at : p.active) {
    mask[at.first * cols + at.second] = static_cast<unsigned char>(1 + at.second % 255);  // any byte but 0 is on
    want_val.push_back(values[at.first * cols + at.second]);
  }
  const int64_t capacity = p.nnz() - missing;
  std::vector<int32_t> want_col = p.col;
  want_col.resize(capacity, -1), want_val.resize(capacity, 0);
  const Device<unsigned char> d_mask(mask, shift);
  const Device<V> d_values(values, shift), d_val(std::vector<V>(capacity), shift);
  const Device<int32_t> d_col(std::vector<int32_t>(capacity), shift), d_narrow(std::vector<int32_t>(rows + 1), shift);
  const Device<int64_t> d_crow(std::vector<int64_t>(rows + 1), shift);
  const Device<Count> ends(std::vector<Count>(mask_tiles(rows * cols)), 0);
  const Device<unsigned char> workspace = workspace_of(scan_workspace_bytes(mask_tiles(rows * cols)));
  REQUIRE_CUDA(launch_mask_ends(d_mask.get(), rows * cols, ends.get(), workspace.get(), nullptr));
  const MaskToCsr args = {
      d_mask.get(), ends.get(),  rows,        cols,    d_values.get(), sizeof(V), wide ? static_cast<void*>(d_crow.get()) : d_narrow.get(),
      wide,         d_col.get(), d_val.get(), capacity};
  REQUIRE_CUDA(launch_csr_from_mask(args, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  const std::string what = "from_mask " + std::to_string(rows) + " x " + std::to_string(cols);
  if (wide) expect(what + ": crow", d_crow.read(), p.crow);
  else expect(what + ": crow", d_narrow.read(), p.narrow);
  expect(what + ": col", d_col.read(), want_col);
  expect(what + ": val", d_val.read(), want_val);
  (void)d_mask.read(), (void)d_values.read(), (void)workspace.read();
}

void check_validate(bool wide) {
  const auto run = [&](const Pattern& p, const std::vector<float>& val, const std::vector<int64_t>& want) {
    const DevicePattern d(p, 1);
    const Device<float> d_val(val, 3);
    const Device<int64_t> out({0, 0, 0}, 1);
    const Device<Count> findings({0, 0}, 0);
    REQUIRE_CUDA(launch_csr_validate({d.view, d_val.get(), ValueKind::f32, 0, out.get(), findings.get()}, kProps, nullptr));
    REQUIRE_CUDA(cudaDeviceSynchronize());
    expect("validate", out.read(), want);
  };
  const auto broken = [&](Pattern p, auto change) {
    change(p);
    p.narrow.assign(p.crow.begin(), p.crow.end());
    return p;
  };
  const Pattern p(40, 70, 0.5, wide);
  std::vector<float> val(p.nnz(), 1.f);
  run(p, val, {0, -1, -1});
  run(broken(p, [](Pattern& q) { q.crow[0] = 1; }), val, {2, 0, 0});
  run(broken(p, [](Pattern& q) { q.crow[20] = q.crow[19] - 1, q.crow[30] = -5; }), val, {3, 19, 20});
  run(broken(p, [](Pattern& q) { q.crow[40] += 1; }), val, {4, 39, 40});
  run(broken(p, [](Pattern& q) { q.col[700] = 70, q.col[900] = -1; }), val,
      {5, std::upper_bound(p.crow.begin(), p.crow.end(), 700) - p.crow.begin() - 1, 700});
  run(broken(p, [](Pattern& q) { q.col[q.crow[5] + 1] = q.col[q.crow[5]]; }), val, {7, 5, p.crow[5] + 1});
  run(broken(p, [](Pattern& q) { std::swap(q.col[q.crow[7]], q.col[q.crow[7] + 1]); }), val, {6, 7, p.crow[7] + 1});
  val[p.crow[8] + 1] = INFINITY;
  run(p, val, {9, 8, p.crow[8] + 1});
}

void check_replace(int64_t rows, int64_t cols, double density, bool wide, size_t shift, int64_t missing) {
  const Pattern p(rows, cols, density, wide);
  std::vector<unsigned char> drop(p.nnz()), take;
  std::vector<uint32_t> value(p.nnz()), came;
  std::vector<uint16_t> half(p.nnz());
  std::map<Place, uint32_t> want;
  for (auto at = p.active.begin(); at != p.active.end(); ++at) {
    const auto e = static_cast<size_t>(std::distance(p.active.begin(), at));
    drop[e] = draw() % 3 == 0 ? 2 : 0, value[e] = static_cast<uint32_t>(1000 + e), half[e] = static_cast<uint16_t>(1 + e);
    if (!drop[e]) want[*at] = value[e];
  }
  std::vector<int32_t> new_rows, new_cols;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c)
      if (!p.active.count({r, c}) && draw() % 4 == 0) new_rows.push_back(static_cast<int32_t>(r)), new_cols.push_back(static_cast<int32_t>(c));
  for (size_t i = new_rows.size(); i > 1; --i) {
    const size_t k = draw() % i;
    std::swap(new_rows[i - 1], new_rows[k]), std::swap(new_cols[i - 1], new_cols[k]);
  }
  for (size_t i = 0; i < new_rows.size(); ++i) {
    take.push_back(draw() % 2 ? 255 : 0), came.push_back(static_cast<uint32_t>(500000 + i));
    if (take[i]) want[{new_rows[i], new_cols[i]}] = came[i];
  }
  new_rows.push_back(-1), new_cols.push_back(-1), take.push_back(1), came.push_back(0);
  std::vector<int64_t> crow(rows + 1, 0);
  std::vector<int32_t> col;
  std::vector<uint32_t> vals;
  std::vector<uint16_t> halves;
  for (const auto& [at, v] : want) {
    ++crow[at.first + 1];
    col.push_back(static_cast<int32_t>(at.second)), vals.push_back(v);
    halves.push_back(v < 500000 ? static_cast<uint16_t>(v - 999) : 0);  // no source for candidates: 0
  }
  for (int64_t r = 0; r < rows; ++r) crow[r + 1] += crow[r];
  const int64_t after = static_cast<int64_t>(want.size()) - missing;
  col.resize(after), vals.resize(after), halves.resize(after);
  const DevicePattern d(p, shift);
  const Device<unsigned char> d_drop(drop, shift), d_take(take, shift);
  const Device<uint32_t> d_value(value, shift), d_came(came, shift), out_value(std::vector<uint32_t>(after), shift);
  const Device<uint16_t> d_half(half, shift), out_half(std::vector<uint16_t>(after), shift);
  const Device<int32_t> d_rows(new_rows, shift), d_cols(new_cols, shift), out_col(std::vector<int32_t>(after), shift),
      out_narrow(std::vector<int32_t>(rows + 1), shift);
  const Device<int64_t> out_crow(std::vector<int64_t>(rows + 1), shift);
  const auto count = static_cast<int64_t>(new_rows.size());
  const Device<unsigned char> workspace = workspace_of(csr_replace_workspace_bytes(rows, count));
  const Replace args = {d.view,
                        d_drop.get(),
                        {d_rows.get(), d_cols.get(), d_take.get(), count, rows, cols},
                        wide ? static_cast<void*>(out_crow.get()) : out_narrow.get(),
                        out_col.get(),
                        after};
  const std::vector<MovedArray> arrays = {{d_value.get(), d_came.get(), out_value.get(), 4}, {d_half.get(), nullptr, out_half.get(), 2}};
  REQUIRE_CUDA(launch_csr_replace(args, arrays.data(), arrays.size(), workspace.get(), kProps, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  const std::string what = "replace " + std::to_string(rows) + " x " + std::to_string(cols);
  if (wide) expect(what + ": crow", out_crow.read(), crow);
  else expect(what + ": crow", out_narrow.read(), std::vector<int32_t>(crow.begin(), crow.end()));
  expect(what + ": col", out_col.read(), col);
  expect(what + ": values", out_value.read(), vals);
  expect(what + ": halves", out_half.read(), halves);
  (void)workspace.read(), (void)d.col.read(), (void)d_rows.read();
}

#ifdef __CUDACC__
// 4096 x 4096 at 90 %: the mask, and a tenth of the entries exchanged with value, momentum and gradient.
void bench() {
  const DeviceProps props = this_device();
  const int64_t side = 4096, numel = side * side;
  const Pattern p(side, side, 0.1, false);
  std::vector<unsigned char> mask(numel, 0), drop(p.nnz());
  std::vector<int32_t> rows, cols;
  for (const Place& at : p.active) mask[at.first * side + at.second] = 1;
  for (auto& d : drop) d = draw() % 10 == 0;
  for (int64_t i = 0; i < numel && static_cast<int64_t>(rows.size()) < p.nnz() / 10; i += 79)
    if (!mask[i]) rows.push_back(static_cast<int32_t>(i / side)), cols.push_back(static_cast<int32_t>(i % side));
  const DevicePattern d(p, 0);
  const auto count = static_cast<int64_t>(rows.size()), after = p.nnz() + count;
  const Device<unsigned char> d_mask(mask, 64), d_drop(drop, 0), d_take(std::vector<unsigned char>(count, 1), 0);
  const Device<Count> ends(std::vector<Count>(mask_tiles(numel)), 0), findings({0, 0}, 0);
  const Device<unsigned char> space = workspace_of(csr_replace_workspace_bytes(side, count) + scan_workspace_bytes(mask_tiles(numel)));
  const Device<float> val(std::vector<float>(after, 1.f), 0), to(std::vector<float>(3 * after), 0), dense(std::vector<float>(numel), 0);
  const Device<int32_t> crow(std::vector<int32_t>(side + 1), 0), col(std::vector<int32_t>(after), 0), d_rows(rows, 0), d_cols(cols, 0);
  const Device<int64_t> out({0, 0, 0}, 0);
  const auto show = [&](const char* op, float us, double bytes) {
    std::printf("{\"op\": \"%s\", \"shape\": \"4096x4096 at 90 %%\", \"us\": %.1f, \"gb_per_s\": %.0f}\n", op, us, bytes / us * 1e-3);
  };
  const MaskToCsr from = {d_mask.get(), ends.get(), side, side, dense.get(), 4, crow.get(), false, col.get(), to.get(), p.nnz()};
  show("csr_from_mask", median_us([&] {
         const int status = launch_mask_ends(d_mask.get(), numel, ends.get(), space.get(), nullptr);
         return status ? status : launch_csr_from_mask(from, nullptr);
       }),
       2.0 * numel + 12.0 * p.nnz());
  show("csr_validate",
       median_us([&] { return launch_csr_validate({d.view, val.get(), ValueKind::f32, 0, out.get(), findings.get()}, props, nullptr); }),
       8.0 * p.nnz());
  const Replace args = {d.view, d_drop.get(), {d_rows.get(), d_cols.get(), d_take.get(), count, side, side}, crow.get(), col.get(), after};
  std::vector<MovedArray> arrays;
  for (int64_t k = 0; k < 3; ++k) arrays.push_back({val.get(), nullptr, to.get() + k * after, 4});
  show("csr_replace", median_us([&] { return launch_csr_replace(args, arrays.data(), arrays.size(), space.get(), props, nullptr); }),
       (15.0 + 24) * p.nnz() + 44.0 * count);
}
#else
void bench() {}
#endif

}  // namespace

int main(int argc, char** argv) {
  if (wants_bench(argc, argv)) return bench(), 0;
  check_mask<uint32_t>(1, 1, 1, true, 0, 0);
  check_mask<uint32_t>(37, 50, 0.3, false, 1, 0);
  check_mask<uint64_t>(3, 8191, 0.1, true, 3, 0);
  check_mask<uint16_t>(16385, 1, 0.5, false, 0, 0);
  check_mask<uint8_t>(5, 4096, 1, true, 16, 0);
  check_mask<uint32_t>(4, 5000, 0.5, false, 5, 7000);  // fewer places than entries
  check_mask<uint16_t>(4, 5000, 0.5, false, 5, -100);  // more of them
  for (const bool wide : {false, true}) check_validate(wide);
  check_replace(1, 40, 0.5, true, 0, 0);
  check_replace(37, 50, 0.3, false, 1, 0);
  check_replace(6, 900, 0.5, true, 3, 0);
  check_replace(50, 9, 0.1, false, 2, 0);
  check_replace(20, 100, 0.5, false, 0, 300);
  std::printf("ok: %d results are exact\n", cases);
}
