// Patterns made from masks, checked, and changed.
// from_mask: tiles of 8,192 elements are counted, the counts scanned, and every tile packs the places that are on in shared memory and then
// writes columns and values in order. 2 B an element (the second time mostly from L2), 4 B and twice the value's size a nonzero.
// validate: flat over pointers, then over entries; an entry needs its row only where its column does not rise, which is where a row begins
// or something is wrong. The lowest fault by a 64-bit atomic minimum. 4 B a column, the value's size, 4 or 8 B a pointer.
// replace: candidates are grouped by row (csr_rows.cuh), the new counts scanned. Then a block marks the columns of a row that stay and those
// that come in shared memory: the rank of a column among the marks is where its entry goes, whatever order the candidates come in. Every
// array is read and written once in that launch; 15 B and twice the arrays' sizes a nonzero, 44 B a candidate.
// State: compiled for sm_80 and sm_90a and run under the emulator of csrc/simt; not yet run on a GPU, no time measured.
//
// budget: mask_count_kernel 40
// budget: mask_pack_kernel 40
// budget: validate_pointers_kernel 32
// budget: validate_entries_kernel 40
// budget: validate_report_kernel 32
// budget: replace_count_kernel 32
// budget: replace_move_kernel 72
// promise: mask_count_kernel LDG.E.128 no-fp64
// promise: mask_pack_kernel LDG.E.128 no-fp64
// promise: validate_pointers_kernel no-fp64
// promise: validate_entries_kernel no-fp64
// promise: validate_report_kernel no-fp64
// promise: replace_count_kernel no-fp64
// promise: replace_move_kernel no-fp64
#pragma once
#include "cuda/csr_device.cuh"
#include "cuda/csr_edit.h"
#include "cuda/vector_io.cuh"

namespace sparsekern::cuda {

__device__ __forceinline__ void store_crow(void* crow, bool wide, int64_t r, int64_t value) {
  if (wide) static_cast<int64_t*>(crow)[r] = value;
  else static_cast<int32_t*>(crow)[r] = static_cast<int32_t>(value);
}

// ---- a pattern from a mask ----

constexpr int kMaskGroup = 16, kMaskGroups = kMaskTile / kMaskGroup, kMaskTurns = kMaskGroups / kThreads;

// Bit k: element k of a group of 16 bools at `at` is on and before `end`.
__device__ __forceinline__ uint32_t mask_group(const uint8_t* mask, int64_t at, int64_t end, bool aligned) {
  if (aligned && at + kMaskGroup <= end) {
    const uint4 bytes = *reinterpret_cast<const uint4*>(mask + at);
    return bytes_to_bits(bytes.x) | bytes_to_bits(bytes.y) << 4 | bytes_to_bits(bytes.z) << 8 | bytes_to_bits(bytes.w) << 12;
  }
  uint32_t bits = 0;
#pragma unroll
  for (int k = 0; k < kMaskGroup; ++k)
    if (at + k < end && mask[at + k] != 0) bits |= 1u << k;
  return bits;
}

__global__ void __launch_bounds__(kThreads) mask_count_kernel(const uint8_t* mask, int64_t numel, Count* counts) {
  __shared__ uint32_t warps[kThreads / 32];
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kMaskTile;
  const bool aligned = is_aligned(mask, 16);
  uint32_t sum = 0;
#pragma unroll
  for (int turn = 0; turn < kMaskTurns; ++turn)
    sum += static_cast<uint32_t>(__popc(mask_group(mask, begin + (turn * kThreads + static_cast<int>(threadIdx.x)) * kMaskGroup, numel, aligned)));
  const uint32_t total = block_sum<kThreads>(sum, warps);
  if (threadIdx.x == 0) counts[blockIdx.x] = total;
}

template <class T>
__device__ __forceinline__ void pack_values(const MaskToCsr& a, int64_t begin, const uint16_t* place, int first, int last, int64_t out) {
  const T* from = static_cast<const T*>(a.values) + begin;
  T* to = static_cast<T*>(a.val) + out;
  for (int j = first; j < last; j += kThreads) to[j] = from[place[j]];
}

__global__ void __launch_bounds__(kThreads, 6) mask_pack_kernel(const MaskToCsr args) {
  __shared__ uint32_t warps[kThreads / 32], bits[kMaskGroups], before[kMaskGroups];
  __shared__ uint16_t place[kMaskTile];  // in the tile, of those that are on, in order
  const int self = static_cast<int>(threadIdx.x);
  const auto* mask = static_cast<const uint8_t*>(args.mask);
  const auto* ends = static_cast<const Count*>(args.ends);
  const int64_t numel = args.rows * args.cols, begin = static_cast<int64_t>(blockIdx.x) * kMaskTile;
  const int64_t end = begin + kMaskTile < numel ? begin + kMaskTile : numel, out = static_cast<int64_t>(begin_of(ends, blockIdx.x));
  const bool aligned = is_aligned(mask, 16);
  uint32_t group[kMaskTurns];
#pragma unroll
  for (int turn = 0; turn < kMaskTurns; ++turn) group[turn] = mask_group(mask, begin + (turn * kThreads + self) * kMaskGroup, end, aligned);
  uint32_t count = 0;
#pragma unroll
  for (int turn = 0; turn < kMaskTurns; ++turn) {
    uint32_t total;
    uint32_t at = count + block_exclusive_sum<kThreads>(static_cast<uint32_t>(__popc(group[turn])), warps, total);
    count += total;
    const int g = turn * kThreads + self;
    bits[g] = group[turn];
    before[g] = at;
    for (uint32_t left = group[turn]; left != 0; left &= left - 1)
      place[at++] = static_cast<uint16_t>(g * kMaskGroup + __ffs(static_cast<int>(left)) - 1);
  }
  __syncthreads();
  // Rows that begin in this tile; the last block also says where the last one ends.
  for (int64_t r = (begin + args.cols - 1) / args.cols + self; r * args.cols < end; r += kThreads) {
    const int at = static_cast<int>(r * args.cols - begin), g = at / kMaskGroup;
    const auto rank = static_cast<int64_t>(before[g]) + __popc(bits[g] & ((1u << at % kMaskGroup) - 1));
    store_crow(args.crow, args.wide, r, out + rank);
  }
  if (end == numel && self == 0) store_crow(args.crow, args.wide, args.rows, out + count);
  const int64_t room = args.capacity - out;  // below 0 behind the end, and not always an int
  const int last = room <= 0 ? 0 : room < static_cast<int64_t>(count) ? static_cast<int>(room) : static_cast<int>(count);
  const auto cols = static_cast<uint32_t>(args.cols), skew = static_cast<uint32_t>(begin % args.cols);  // at most 2^31 and below it
  for (int j = self; j < last; j += kThreads) args.col[out + j] = static_cast<int32_t>((skew + place[j]) % cols);
  if (args.values != nullptr) {
    if (args.width == 1) pack_values<uint8_t>(args, begin, place, self, last, out);
    else if (args.width == 2) pack_values<uint16_t>(args, begin, place, self, last, out);
    else if (args.width == 4) pack_values<uint32_t>(args, begin, place, self, last, out);
    else pack_values<uint64_t>(args, begin, place, self, last, out);
  }
  if (end < numel) return;
  for (int64_t j = out + count + self; j < args.capacity; j += kThreads) {  // fewer than the caller said
    args.col[j] = -1;
    if (args.values != nullptr)
      for (int k = 0; k < args.width; ++k) static_cast<uint8_t*>(args.val)[j * args.width + k] = 0;
  }
}

// ---- the check of a pattern ----

// Fault codes of csr_validate (sparsekern/ops/csr_edit.py), here those that a kernel finds.
constexpr int kPointerStart = 2, kPointerFalls = 3, kPointerEnd = 4, kColumnRange = 5, kColumnOrder = 6, kColumnTwice = 7, kValueNotFinite = 9;
constexpr Count kSound = ~0ull;  // of findings[0], of the pointers, and findings[1], of the entries; else position * 16 + code

__device__ __forceinline__ void report_fault(Count* finding, int64_t position, int code) {
  atomicMin(finding, static_cast<Count>(position) << 4 | static_cast<Count>(code));
}

__global__ void __launch_bounds__(kThreads) validate_pointers_kernel(const Validate args) {
  const CsrView& p = args.pattern;
  for (int64_t r = grid_thread(); r <= p.rows; r += grid_threads()) {
    const int64_t here = crow_at(p, r);
    if (r == 0 && here != 0) report_fault(args.findings, 0, kPointerStart);
    if (r > 0 && here < crow_at(p, r - 1)) report_fault(args.findings, r, kPointerFalls);
    if (r == p.rows && here != p.nnz) report_fault(args.findings, r, kPointerEnd);
  }
}

__device__ __forceinline__ bool is_finite(const void* val, ValueKind kind, int64_t e) {
  constexpr uint64_t kExponent64 = 0x7ff0000000000000ull;
  if (kind == ValueKind::f32) return (static_cast<const uint32_t*>(val)[e] & 0x7f800000u) != 0x7f800000u;
  if (kind == ValueKind::bf16) return (static_cast<const uint16_t*>(val)[e] & 0x7f80) != 0x7f80;
  if (kind == ValueKind::f16) return (static_cast<const uint16_t*>(val)[e] & 0x7c00) != 0x7c00;
  if (kind == ValueKind::f64) return (static_cast<const uint64_t*>(val)[e] & kExponent64) != kExponent64;
  return true;
}

// The last row that begins at or before entry e, the pointers being sound.
__device__ __forceinline__ int64_t row_of_entry(const CsrView& p, int64_t e) {
  return first_where(0, p.rows - 1, [&](int64_t r) { return crow_at(p, r + 1) > e; });
}

__global__ void __launch_bounds__(kThreads) validate_entries_kernel(const Validate args) {
  if (args.findings[0] != kSound) return;  // no row can be trusted then
  const CsrView& p = args.pattern;
  for (int64_t e = grid_thread(); e < p.nnz; e += grid_threads()) {
    const int32_t here = p.col[e], last = e > 0 ? p.col[e - 1] : -1;
    int code = is_finite(args.val, args.kind, e) ? 0 : kValueNotFinite;
    if (here <= last && crow_at(p, row_of_entry(p, e)) != e) code = here == last ? kColumnTwice : kColumnOrder;
    if (here < 0 || here >= p.cols) code = kColumnRange;
    if (code != 0) report_fault(&args.findings[1], e, code);
  }
}

__global__ void __launch_bounds__(32) validate_report_kernel(const Validate args) {
  if (threadIdx.x != 0) return;
  int64_t code = args.known, row = -1, position = -1;
  if (code == 0) {
    const bool pointers = args.findings[0] != kSound;
    const Count finding = args.findings[pointers ? 0 : 1];
    if (finding != kSound) {
      code = static_cast<int64_t>(finding & 15);
      position = static_cast<int64_t>(finding >> 4);
      row = !pointers ? row_of_entry(args.pattern, position) : code == kPointerStart ? 0 : position - 1;
    }
  }
  args.out[0] = code, args.out[1] = row, args.out[2] = position;
}

// ---- drop and insert ----

// counts[r]: what row r will have. A warp does one row.
__global__ void __launch_bounds__(kThreads) replace_count_kernel(const Replace args, const Count* ends, Count* counts) {
  for (int64_t r = grid_thread() >> 5; r < args.pattern.rows; r += grid_threads() >> 5) {
    const int64_t end = crow_at(args.pattern, r + 1);
    unsigned kept = 0;
#pragma unroll 4
    for (int64_t e = crow_at(args.pattern, r) + lane_id(); e < end; e += 32) kept += args.drop[e] == 0;
    kept = __reduce_add_sync(kAllLanes, kept);
    if (lane_id() == 0) counts[r] = kept + (ends[r] - begin_of(ends, r));
  }
}

struct MovedTable {
  MovedArray array[kMovedArrays];
  int count;
};

struct ReplaceRows {
  const Count *ends, *new_ends;  // of the candidates, of the new rows
  const uint32_t* item;          // the candidates' numbers
};

constexpr int kMoveFlight = 4;
constexpr int64_t kNowhere = -1;

template <class T>
__device__ __forceinline__ void move_elements(const void* from, void* to, const int64_t (&source)[kMoveFlight],
                                              const int64_t (&target)[kMoveFlight]) {
  T here[kMoveFlight];
#pragma unroll
  for (int k = 0; k < kMoveFlight; ++k) here[k] = from != nullptr && target[k] >= 0 ? static_cast<const T*>(from)[source[k]] : T(0);
#pragma unroll
  for (int k = 0; k < kMoveFlight; ++k)
    if (target[k] >= 0) static_cast<T*>(to)[target[k]] = here[k];
}

// to[target[k]] = from[source[k]] in every array, where there is a target; 0 where there is no `from`.
__device__ __forceinline__ void move_arrays(const MovedTable& table, bool inserted, const int64_t (&source)[kMoveFlight],
                                            const int64_t (&target)[kMoveFlight]) {
  for (int a = 0; a < table.count; ++a) {
    const MovedArray& array = table.array[a];
    const void* from = inserted ? array.inserted : array.from;
    if (array.width == 4) move_elements<uint32_t>(from, array.to, source, target);
    else if (array.width == 2) move_elements<uint16_t>(from, array.to, source, target);
    else if (array.width == 8) move_elements<uint64_t>(from, array.to, source, target);
    else move_elements<uint8_t>(from, array.to, source, target);
  }
}

template <int threads>
__global__ void __launch_bounds__(threads)
    replace_move_kernel(const __grid_constant__ Replace args, const __grid_constant__ ReplaceRows rows, const __grid_constant__ MovedTable table) {
  __shared__ RowMarks marks;
  const int self = static_cast<int>(threadIdx.x);
  const CsrView& p = args.pattern;
  const int32_t* new_cols = args.candidates.cols;
  clear_marks(marks, kMarkWords);
  for (int64_t r = blockIdx.x; r < p.rows; r += gridDim.x) {
    const int64_t begin = crow_at(p, r), end = crow_at(p, r + 1);
    const auto taken = static_cast<int64_t>(begin_of(rows.ends, r)), taken_end = static_cast<int64_t>(rows.ends[r]);
    const auto out_end = static_cast<int64_t>(rows.new_ends[r]);
    int64_t out = static_cast<int64_t>(begin_of(rows.new_ends, r));
    if (self == 0) {
      if (r == 0) store_crow(args.crow_out, p.wide, 0, 0);
      store_crow(args.crow_out, p.wide, r + 1, out_end);
    }
    const auto staying = [&](int64_t e) {
      const auto column = static_cast<uint32_t>(p.col[e]);
      return args.drop[e] == 0 ? column : kNoColumn;
    };
    uint32_t base = out < out_end ? 0 : kNoColumn;
    while (base != kNoColumn) {
      begin_window(marks);
      MarkRange range;
      for_entries<threads>(begin, end, staying, [&](uint32_t column) { mark(marks, base, column, range); });
      for_entries<threads>(
          taken, taken_end, [&](int64_t b) { return static_cast<uint32_t>(new_cols[rows.item[b]]); },
          [&](uint32_t column) { mark(marks, base, column, range); });
      const int words = end_marks(marks, range);
      const uint32_t found = rank_marks<threads>(marks, words);
      // Where the entry of a column goes, if it is in this window.
      const auto place = [&](uint32_t column) {
        const uint32_t at = column - base;
        if (column < base || at >= kMarkColumns) return kNowhere;
        const int64_t to = out + rank_of(marks, at);
        if (to >= args.nnz_out) return kNowhere;
        args.col_out[to] = static_cast<int32_t>(column);
        return to;
      };
      const auto move = [&](int64_t from, int64_t last, bool inserted) {
        for (int64_t first = from + self; first < last; first += kMoveFlight * threads) {
          int64_t source[kMoveFlight], target[kMoveFlight];
          uint32_t column[kMoveFlight];
#pragma unroll
          for (int k = 0; k < kMoveFlight; ++k) {
            const int64_t i = first + k * threads;
            source[k] = i < last && inserted ? rows.item[i] : i;
            column[k] = i >= last ? kNoColumn : inserted ? static_cast<uint32_t>(new_cols[source[k]]) : staying(i);
          }
#pragma unroll
          for (int k = 0; k < kMoveFlight; ++k) target[k] = place(column[k]);
          move_arrays(table, inserted, source, target);
        }
      };
      move(begin, end, false);
      move(taken, taken_end, true);
      out += found;
      base = end_window(marks, words);
    }
    // What stays free (a candidate came twice or was active, or fewer came than the caller said) is at least a place in the matrix.
    const int64_t fill = r + 1 == p.rows ? args.nnz_out : out_end < args.nnz_out ? out_end : args.nnz_out;
    for (int64_t to = out + self; to < fill; to += threads) {
      args.col_out[to] = 0;
      for (int a = 0; a < table.count; ++a) {
        const MovedArray& array = table.array[a];
        for (int64_t k = 0; k < array.width; ++k) static_cast<uint8_t*>(array.to)[to * array.width + k] = 0;
      }
    }
  }
}

}  // namespace sparsekern::cuda
