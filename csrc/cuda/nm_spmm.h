// What nm_spmm asks of the GPU: launchers over raw pointers, free of torch.
#pragma once
#include <algorithm>
#include <numeric>

#include "cuda/csr_spmm.h"
#include "cuda/csr_staged_plan.h"

namespace sparsekern::cuda {

// x / d for 0 <= x < 2^31: a product and a shift.
struct Divisor {
  uint32_t magic;
  int32_t shift;
};
inline Divisor divisor(int d) {
  int log = 0;
  while (1 << log < d) ++log;
  return {static_cast<uint32_t>((uint64_t{1} << (31 + log)) / d + 1), 31 + log};
}

// W with `keep` of every `group` columns stored. Of SpmmArgs, crow, col, perm and row_order stay null; nnz = rows * per_row.
struct NmArgs : SpmmArgs {
  const uint8_t* index;  // [rows / v, per_row]: positions in a group; what is not below `group` counts as the last one
  int64_t per_row, v;    // per_row = cols / group * keep; v rows share their columns, v divides rows
  int32_t keep, group;
  Divisor by_keep;
};

// ---- plans ----

constexpr int kRowsTogether = 4;  // rows of one band whose sums share what is read of b
constexpr int kTogetherThreads = 512;

inline bool rows_together(int64_t v) { return v % kRowsTogether == 0; }

// The tiles of the staged product hold whole groups, and if possible a multiple of four entries of every row, so that four can be read at
// once. Rows that are taken together count as one; registers hold the sums of one such set, or of two rows of fp32.
inline StagedPlan plan_nm_staged(int64_t rows, int64_t cols, int64_t n, int size, int64_t v, int keep, int group, const DeviceProps& props) {
  const bool together = rows_together(v);
  const int64_t lines = together ? rows / kRowsTogether : rows;
  const int threads = together ? kTogetherThreads : kStagedThreads, sets = together || size < 4 ? 1 : 2, fours = 4 / std::gcd(keep, 4);
  const StagedPlan best = plan_staged(lines, cols, n, size, props, std::lcm(8, group * fours), threads, sets);
  return best.tile_rows > 0 ? best : plan_staged(lines, cols, n, size, props, std::lcm(8, group), threads, sets);
}

// 16-bit types on the tensor cores: a block has 16, 32 or 64 rows of one band and 128 columns.
constexpr int kMmaColumns = 128;
inline int mma_rows(int64_t v) { return v % 64 == 0 ? 64 : v % 32 == 0 ? 32 : v % 16 == 0 ? 16 : 0; }
inline bool mma_serves(const NmArgs& a) { return mma_rows(a.v) > 0 && bytes_of(a.type) == 2 && a.val_type == a.type; }

// ---- launchers; each returns a cudaError_t ----

// As in csr_spmm.h. scalar serves every dtype and, alone, runs under a guard.
size_t nm_scalar_workspace_bytes(const NmArgs& args);
int launch_nm_scalar(const NmArgs& args, void* workspace, const DeviceProps& props, cudaStream_t stream);

// Where the plan fits (staged_fits) and b is not f64; the bits of scalar.
int launch_nm_staged(const NmArgs& args, const DeviceProps& props, cudaStream_t stream);

// Where mma_serves. Sums run in the order of the tensor cores, fixed by the row alone.
inline size_t nm_mma_workspace_bytes(const NmArgs& args) { return spmm_operand_bytes(args); }
int launch_nm_mma(const NmArgs& args, void* workspace, cudaStream_t stream);

// As launch_csr_densify.
int launch_nm_densify(const NmArgs& args, void* dense, int64_t width, int32_t* flags, const DeviceProps& props, cudaStream_t stream);

}  // namespace sparsekern::cuda
