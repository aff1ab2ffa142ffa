// Which way a sampled product goes, and how it is cut: plain host arithmetic, free of CUDA and torch, tested by itself.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "cuda/launch.h"

namespace sparsekern::cuda {

enum class SddmmWay : int8_t { gather, staged, dense };

// What the choice rests on: bytes or operations a second of an H200, and seconds of a launch. Guesses until measured.
struct SddmmRates {
  double cache = 5.5e12;       // gathered from the L2 cache
  double shared_half = 14e12;  // and from shared memory, of 29.7: instructions take the rest, most of all widening
  double shared_single = 22e12;
  double memory = 4.3e12;  // copied in memory
  double half = 788e12;    // dense product of bf16 or fp16
  double tf32 = 394e12;    // of fp32 where TF32 is allowed
  double single = 50e12;   // and where it is not
  double launch = 2e-6;
};

struct SddmmShape {
  int64_t rows, cols, n, entries;
  int size;             // bytes of an element
  bool copy_a, copy_b;  // operands that the gather and the staged way have to copy into rows first
  bool pattern;         // sorted by row, a row of a is fetched once; a list of places may be in any order
  bool tf32 = false;    // fp32 products may use it
};

constexpr int64_t kSddmmLong = int64_t{1} << 20;         // longer dots are compensated sums of passes, which only the gather does
constexpr int64_t kSddmmInCache = int64_t{32} << 20;     // of both operands that a pass walks over
constexpr int64_t kSddmmChunkBytes = int64_t{16} << 20;  // of the dense product at a time: it stays in the L2 cache
constexpr int kSddmmTileBytes = 256;                     // of a row of b in a tile of the staged way
constexpr int64_t kSddmmSumBytes = int64_t{256} << 20;   // of their sums beside one another
constexpr int kSddmmParts = 4;                           // most pieces of n that blocks of the staged way share

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

inline double sddmm_row_bytes(const SddmmShape& s) { return static_cast<double>((s.n * s.size + 31) / 32 * 32); }  // whole sectors

inline int64_t sddmm_passes(const SddmmShape& s) {
  const int64_t slab = sddmm_slab(s.rows, s.cols, s.n, s.size);
  return (s.n + slab - 1) / slab;
}

inline double sddmm_copy_seconds(const SddmmShape& s, const SddmmRates& r) {
  if (!s.copy_a && !s.copy_b) return 0;
  return 2 * sddmm_row_bytes(s) * ((s.copy_a ? s.rows : 0) + (s.copy_b ? s.cols : 0)) / r.memory + sddmm_passes(s) * r.launch;
}

inline double sddmm_gather_seconds(const SddmmShape& s, const SddmmRates& r = {}) {
  const double of_a = static_cast<double>(s.pattern ? std::min(s.rows, s.entries) : s.entries), entries = static_cast<double>(s.entries);
  const int64_t passes = sddmm_passes(s);
  return sddmm_row_bytes(s) * (entries + of_a) / r.cache + (12 + (passes > 1 ? 8.0 * passes : 0)) * entries / r.memory + passes * r.launch +
         sddmm_copy_seconds(s, r);
}

// A block of the staged way has `width` columns of b, a band of rows and one of `parts` pieces of n.
struct SddmmStagedPlan {
  int parts, tiles, bands, width;
  double seconds;
  int64_t blocks() const { return static_cast<int64_t>(parts) * tiles * bands; }
  int64_t shared_bytes() const { return static_cast<int64_t>(width) * kSddmmTileBytes; }
};

// They follow from the shape alone, so that the result does not depend on the device.
inline int64_t sddmm_steps(const SddmmShape& s) { return (sddmm_slab(s.rows, s.cols, s.n, s.size) * s.size + kSddmmTileBytes - 1) / kSddmmTileBytes; }
inline int64_t sddmm_parts(const SddmmShape& s) {
  return std::clamp<int64_t>(kSddmmSumBytes / (4 * std::max<int64_t>(s.entries, 1)), 1, std::min<int64_t>(sddmm_steps(s), kSddmmParts));
}

inline SddmmStagedPlan sddmm_staged_plan(const SddmmShape& s, const DeviceProps& props, const SddmmRates& r = {}) {
  const int64_t passes = sddmm_passes(s), steps = sddmm_steps(s);
  const int64_t most = std::max<int64_t>(props.shared_bytes / kSddmmTileBytes, 1), cols = std::max<int64_t>(s.cols, 1);
  const double cache = r.cache / props.sms,
               shared = (s.size == 2 ? r.shared_half : r.shared_single) / props.sms;  // of one of the blocks that run side by side
  const double entries = static_cast<double>(s.entries), row_bytes = sddmm_row_bytes(s), all_steps = static_cast<double>(steps) * passes;
  SddmmStagedPlan best = {static_cast<int>(sddmm_parts(s)), 0, 0, 0, 0};
  const int64_t fewest = (cols + most - 1) / most;
  for (int64_t tiles = fewest; tiles < fewest + 8; ++tiles) {
    const int64_t width = (cols + tiles - 1) / tiles, used = (cols + width - 1) / width;
    for (int64_t waves = 1; waves <= 4; ++waves) {
      const int64_t bands = std::clamp<int64_t>(waves * props.sms / (best.parts * used), 1, std::max<int64_t>(s.rows, 1));
      const int64_t rounds = (best.parts * used * bands + props.sms - 1) / props.sms;
      // Entries of a row and a tile are taken by fours; the rest of the last four stands idle.
      const double cells = static_cast<double>(s.rows) * used, idle = 2 * cells * (1 - std::exp(-entries / std::max(cells, 1.0)));
      const double of_block = 1 / static_cast<double>(used * bands * best.parts), here = entries * of_block, worked = (entries + idle) * of_block;
      const double fetched = row_bytes / best.parts * (static_cast<double>(width) + static_cast<double>(s.rows) / bands) + here * 12 * all_steps;
      const double seconds = rounds * (fetched / cache + worked * row_bytes / shared) + entries * (4 * best.parts + s.size) / r.cache +
                             (passes + 1) * r.launch + sddmm_copy_seconds(s, r);
      if (best.bands == 0 || seconds < best.seconds)
        best = {best.parts, static_cast<int>(used), static_cast<int>(bands), static_cast<int>(width), seconds};
    }
  }
  return best;
}

inline double sddmm_dense_seconds(const SddmmShape& s, const SddmmRates& r = {}) {
  const double numbers = static_cast<double>(s.rows) * s.cols, entries = static_cast<double>(s.entries);
  const int64_t height = std::max<int64_t>(sddmm_chunk_rows(s.rows, s.cols), 1), chunks = (s.rows + height - 1) / height;
  // Written once; of it each entry reads a sector of 32 bytes, shared with its neighbours where they are dense.
  const double read = std::min(32 * entries, 4 * numbers) + (s.pattern ? 8.0 : 8.0 * chunks) * entries;
  return 2 * numbers * s.n / (s.size == 2 ? r.half : s.tf32 ? r.tf32 : r.single) + (4 * numbers + read) / r.cache + 2 * chunks * r.launch;
}

inline bool sddmm_can(SddmmWay way, const SddmmShape& s) {
  if (way == SddmmWay::gather) return true;
  return s.size < 8 && s.n <= kSddmmLong && (way == SddmmWay::dense || s.pattern);
}

inline SddmmWay sddmm_way(const SddmmShape& s, const DeviceProps& props, const SddmmRates& r = {}) {
  SddmmWay best = SddmmWay::gather;
  double seconds = sddmm_gather_seconds(s, r);
  const auto offer = [&](SddmmWay way, double its) {
    if (sddmm_can(way, s) && its < seconds) best = way, seconds = its;
  };
  offer(SddmmWay::staged, sddmm_staged_plan(s, props, r).seconds);
  offer(SddmmWay::dense, sddmm_dense_seconds(s, r));
  return best;
}

}  // namespace sparsekern::cuda
