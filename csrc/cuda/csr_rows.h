// What the ops on sparse patterns share on the GPU: a pattern by its pointers, and places of a matrix grouped by row.
#pragma once
#include "cuda/device_scan.h"

namespace sparsekern::cuda {

struct CsrView {
  const void* crow;  // [rows + 1], int64 if `wide`, else int32
  const int32_t* col;
  int64_t rows, cols, nnz;
  bool wide;
};

// Places in any order. Those with a negative or too large row or column, or not taken, are left out.
struct Places {
  const int32_t *rows, *cols;
  const uint8_t* take;  // null: all
  int64_t count;        // below 2^31
  int64_t n_rows, n_cols;
};

enum class Payload : int32_t { column, number };  // what is kept of a place: its column, or which one it is

// Those of row r are item[ends[r - 1]] to item[ends[r] - 1] (from 0 for row 0), in no particular order.
struct RowBuckets {
  Count* ends;     // [n_rows]
  uint32_t* item;  // [count]
  uint32_t* rank;  // [count]: scratch
  void* scan;      // scan_workspace_bytes(n_rows)
};

int launch_row_buckets(const Places& places, Payload payload, const RowBuckets& buckets, const DeviceProps& props, cudaStream_t stream);

// Blocks of kThreads that walk `count` items: enough to fill the device.
inline unsigned flat_grid(int64_t count, const DeviceProps& props) {
  const int64_t most = static_cast<int64_t>(props.sms) * 8, wanted = (count + kThreads - 1) / kThreads;
  return static_cast<unsigned>(wanted < 1 ? 1 : wanted < most ? wanted : most);
}

// Threads for a block that does one row after another, by the mean number of entries a row.
inline int row_threads(int64_t entries, int64_t rows) { return entries < 64 * rows ? 32 : 128; }

// Some rows a block, so that clearing its marks pays, and several blocks for each that an SM holds, so that uneven rows even out.
inline unsigned row_grid(int64_t rows, const DeviceProps& props) {
  const int64_t most = static_cast<int64_t>(props.sms) * 64;
  return static_cast<unsigned>(rows < most ? rows : most);
}

}  // namespace sparsekern::cuda
