// Which way a sampled product goes, and how it is cut: plain host arithmetic, free of CUDA and torch, tested by itself.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace sparsekern::cuda {

enum class SddmmWay : int8_t { gather, dense };

// What the choice rests on: bytes or operations a second of an H200 and seconds of a launch. Guesses until measured.
struct SddmmRates {
  double cache = 5.5e12;   // gathered from the L2 cache
  double memory = 4.3e12;  // copied in memory
  double half = 788e12;    // dense product of bf16 or fp16
  double single = 50e12;   // and of fp32, TF32 not allowed
  double launch = 2e-6;
};

struct SddmmShape {
  int64_t rows, cols, n, entries;
  int size;               // bytes of an element
  bool stage_a, stage_b;  // operands that the gather has to copy first
  bool sorted;            // by row, so that a row of a is fetched once
};

constexpr int64_t kSddmmLong = int64_t{1} << 20;         // longer dots are compensated sums of partial ones, and never dense
constexpr int64_t kSddmmInCache = int64_t{32} << 20;     // of both operands that a pass of the gather walks over
constexpr int64_t kSddmmChunkBytes = int64_t{16} << 20;  // of the dense product at a time: it stays in the L2 cache

// Columns of the operands that one pass takes: whole lines of 128 bytes, at most 4096, and passes of about equal length.
inline int64_t sddmm_slab(int64_t rows, int64_t cols, int64_t n, int size) {
  const int64_t line = 128 / size;
  const int64_t fit = kSddmmInCache / (std::max<int64_t>(rows + cols, 1) * size);
  const int64_t most = std::clamp<int64_t>(fit / line * line, 256, 4096);
  const int64_t passes = std::max<int64_t>((n + most - 1) / most, 1);
  return std::max<int64_t>(((n + passes - 1) / passes + line - 1) / line, 1) * line;
}

// Rows of the dense product at a time: whole tiles of a library's product.
inline int64_t sddmm_chunk_rows(int64_t rows, int64_t cols) {
  const int64_t fit = kSddmmChunkBytes / (std::max<int64_t>(cols, 1) * 4) / 128 * 128;
  return std::min(rows, std::max<int64_t>(fit, 128));
}

inline double sddmm_gather_seconds(const SddmmShape& s, const SddmmRates& r) {
  const double row = static_cast<double>((s.n * s.size + 31) / 32 * 32);  // whole sectors
  const double of_a = s.sorted ? std::min(s.rows, s.entries) : s.entries;
  const double staged = row * ((s.stage_a ? s.rows : 0) + (s.stage_b ? s.cols : 0));
  const int64_t passes = (s.n + sddmm_slab(s.rows, s.cols, s.n, s.size) - 1) / sddmm_slab(s.rows, s.cols, s.n, s.size);
  const double sums = passes > 1 ? 8.0 * passes * s.entries : 0;
  return row * (s.entries + of_a) / r.cache + (2 * staged + 12.0 * s.entries + sums) / r.memory + (staged > 0 ? 2 : 1) * passes * r.launch;
}

inline double sddmm_dense_seconds(const SddmmShape& s, const SddmmRates& r) {
  const double numbers = static_cast<double>(s.rows) * s.cols;
  const int64_t height = sddmm_chunk_rows(s.rows, s.cols), chunks = (s.rows + height - 1) / height;
  // Written once; of it each entry reads a sector of 32 bytes, shared with its neighbours where they are dense.
  const double read = std::min(32.0 * s.entries, 4 * numbers) + (s.sorted ? 8.0 : 8.0 * chunks) * s.entries;
  return 2 * numbers * s.n / (s.size == 2 ? r.half : r.single) + (4 * numbers + read) / r.cache + 2 * chunks * r.launch;
}

inline SddmmWay sddmm_way(const SddmmShape& s, const SddmmRates& r = {}) {
  return s.n > kSddmmLong || sddmm_gather_seconds(s, r) <= sddmm_dense_seconds(s, r) ? SddmmWay::gather : SddmmWay::dense;
}

}  // namespace sparsekern::cuda
