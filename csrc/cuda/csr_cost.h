// Which algorithm a CSR product takes: expected times from bytes, flops and rates. Host arithmetic, free of CUDA and torch.
#pragma once
#include <algorithm>

#include "cuda/csr_staged_plan.h"

namespace sparsekern::cuda {

enum class SpmmAlgo : int8_t { scalar, staged, densify };

struct SpmmShape {
  int64_t rows, cols, n, nnz;
  int size, val_size;           // bytes of an element of b, of a value
  bool half, tf32;              // b has a 16-bit type; fp32 matrix products may use TF32
  bool column_major, permuted;  // b's layout; values by a permutation
  int place_size = 4;           // bytes of an entry's column
};

// Per second on an H200. The rates are those of the hardware; what kernels reach of them is a guess until measured.
struct SpmmRates {
  double memory = 4.3e12, l2 = 5.5e12, shared = 29.7e12, fma = 60e12;  // bytes, bytes, bytes, flops
  double dense_half = 788e12, dense_tf32 = 394e12, dense_f32 = 50e12;  // flops of the library's dense product
  double launch = 2e-6;                                                // seconds that a launch costs
  // Shares of those rates. The dense product and its bytes count in full, so that a sparse one is taken only where it should win.
  double scalar_share = 0.7, staged_share = 0.6, tile_share = 0.8, fill_share = 0.85;
  double chain = 0.6e-6;  // seconds from the columns of eight entries to their products
  int sms = 132;
};

constexpr double kMostDenseBytes = 512 << 20;  // a matrix that is larger when dense stays sparse

// All rates follow the number of multiprocessors.
inline double scale_of(const SpmmRates& r, const DeviceProps& props) { return static_cast<double>(props.sms) / r.sms; }

inline double permuted_seconds(const SpmmShape& s, const SpmmRates& r, double scale) {
  return s.permuted ? r.launch + s.nnz * 40.0 / (r.l2 * scale) : 0;  // a 32-byte sector, 4 bytes of index and 4 of result
}

inline double scalar_seconds(const SpmmShape& s, const SpmmRates& r, const DeviceProps& props) {
  const double scale = scale_of(r, props), dense_bytes = static_cast<double>(s.cols + s.rows) * s.n * s.size;
  const double row = std::max<double>(32, static_cast<double>(s.n) * s.size);  // of b, as gathered
  const double gather = s.nnz * (row + s.place_size + s.val_size) / (r.l2 * r.scalar_share * scale);
  const double flops = 2.0 * s.nnz * s.n / (r.fma * r.scalar_share * scale);
  const double memory = (dense_bytes + s.nnz * static_cast<double>(s.place_size + s.val_size)) / (r.memory * scale);
  const double chain = s.rows > 0 ? static_cast<double>(s.nnz) / s.rows / 8 * r.chain : 0;
  const double turn = s.column_major ? r.launch + 2.0 * s.cols * s.n * s.size / (r.l2 * r.tile_share * scale) : 0;
  return r.launch + permuted_seconds(s, r, scale) + turn + std::max({gather, flops, memory, chain});
}

inline double staged_seconds(const SpmmShape& s, const SpmmRates& r, const DeviceProps& props) {
  const StagedPlan p = plan_staged(s.rows, s.cols, s.n, s.size, props);
  if (!staged_fits(p, s.rows, s.n, s.nnz) || s.rows == 0) return 1e30;
  const double sm = 1.0 / r.sms, block_rows = p.threads / 4.0 * p.rows_per_group;
  const double waves = static_cast<double>((p.panels * p.row_blocks + props.sms - 1) / props.sms);
  // A block that is not full of rows costs less, and short blocks share a multiprocessor.
  const double entries = static_cast<double>(s.nnz) / s.rows * std::min<double>(block_rows, static_cast<double>(s.rows));
  const double busy = p.threads >= 512 ? 1 : p.threads / 512.0;  // of what a multiprocessor's shared memory gives
  const double gather = entries * kPanelBytes / (r.shared * sm * r.staged_share * busy);
  const double tile = static_cast<double>(s.cols) * kPanelBytes / (r.l2 * sm * r.tile_share);
  const double pattern = entries * (4 + s.val_size) / (r.l2 * sm * r.tile_share);
  const double first = tile / p.tiles;  // nothing to do until it is there
  const double memory = (static_cast<double>(s.cols + s.rows) * s.n * s.size + s.nnz * static_cast<double>(s.place_size + s.val_size)) /
                        (r.memory * scale_of(r, props));
  return r.launch + permuted_seconds(s, r, scale_of(r, props)) + std::max(waves * (first + std::max(gather, tile - first + pattern)), memory);
}

// With the dense weight to be made, b to be checked and the guarded launch, which returns at once.
inline double densify_seconds(const SpmmShape& s, const SpmmRates& r, const DeviceProps& props) {
  const double scale = scale_of(r, props), weight = static_cast<double>(s.rows) * s.cols * s.size;
  const double fill = (weight + static_cast<double>(s.cols) * s.n * s.size + s.nnz * static_cast<double>(s.place_size + s.val_size)) /
                      (r.memory * r.fill_share * scale);
  const double rate = s.half ? r.dense_half : s.tf32 ? r.dense_tf32 : r.dense_f32;
  const double flops = 2.0 * s.rows * s.cols * s.n / (rate * scale);
  const double memory = (weight + static_cast<double>(s.cols + s.rows) * s.n * s.size) / (r.memory * scale);
  return 3 * r.launch + fill + std::max(flops, memory);
}

// float64 (`size` 8) has the scalar kernel only.
inline SpmmAlgo choose_spmm(const SpmmShape& s, const DeviceProps& props, bool may_densify = true, const SpmmRates& r = {}) {
  if (s.size == 8 || s.nnz == 0) return SpmmAlgo::scalar;
  const double scalar = scalar_seconds(s, r, props), staged = staged_seconds(s, r, props);
  const bool dense = may_densify && static_cast<double>(s.rows) * s.cols * s.size <= kMostDenseBytes;
  if (dense && densify_seconds(s, r, props) < std::min(scalar, staged)) return SpmmAlgo::densify;
  return staged < scalar ? SpmmAlgo::staged : SpmmAlgo::scalar;
}

}  // namespace sparsekern::cuda
