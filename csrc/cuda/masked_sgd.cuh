// v = mu v + (1 - damp)(g + wd p);  p -= lr (v or g + mu v), inside the mask; outside nothing changes, or p = v = +0.
// A persistent grid walks pieces of a whole list (launch.h); a thread does two 16-byte groups of p at a time.
// Bytes per element: p, g, v read, p, v written, mask: 20 + 1 (bool) or 20 + 1/8 (bits) in fp32; bandwidth-bound. A group
// without an active bit is neither read nor written ("keep", or assume_clean): sectors of 32 B drop out where both groups do.
// Pointer lists by value after torch's multi-tensor kernels; arithmetic in the order of csrc/cpu/sgd_step.h, unfused.
// State: compiled for sm_80 and sm_90a and run under the emulator of csrc/simt; not yet run on a GPU, no time measured.
//
// budget: masked_sgd_kernel<float 64
// budget: masked_sgd_kernel 80
// budget: packed_sgd_kernel<float 80
// budget: packed_sgd_kernel 120
// promise: masked_sgd_kernel LDG.E.128 STG.E.128 no-fp64
// promise: packed_sgd_kernel LDG.E.128 STG.E.128 no-fp64
#pragma once
#include "cuda/sgd_step.cuh"

namespace sparsekern::cuda {

template <int capacity>
struct SgdTable {
  SgdEntry entry[capacity];
};

struct SgdArgs {
  ListPlan plan;
  SgdOptions options;
};

// 96 bytes in flight per thread: 96 KB per SM with 1024 threads of 64 registers. Unpacking halves and holding positions
// take more than that: 768 threads of 80 there, and 512 for both together.
template <class P>
constexpr int kMaskedBlocksPerSm = sizeof(P) == 4 ? 4 : 3;
template <class P>
constexpr int kPackedBlocksPerSm = sizeof(P) == 4 ? 3 : 2;

// Short lists send few bytes with the launch; the long table just fits.
constexpr int kSmallTable = 80, kLargeTable = 672;
static_assert(sizeof(SgdTable<kLargeTable>) + sizeof(SgdArgs) <= kParameterBytes);

template <class P, class G, int capacity>
__global__ void __launch_bounds__(kThreads, kMaskedBlocksPerSm<P>)
    masked_sgd_kernel(const __grid_constant__ SgdTable<capacity> table, const __grid_constant__ SgdArgs args) {
  const SgdStep step = read_step(args.options);
  if (step.skip) return;
  for (int64_t k = blockIdx.x; k < args.plan.pieces; k += gridDim.x) {
    const Piece piece = piece_at(table.entry, args.plan, k);
    const SgdEntry& e = table.entry[piece.tensor];
    if (e.kind == SgdKind::bools) sgd_piece<SgdKind::bools, P, G>(e, piece.begin, piece.end, step);
    else if (e.kind == SgdKind::bits) sgd_piece<SgdKind::bits, P, G>(e, piece.begin, piece.end, step);
    else sgd_piece<SgdKind::none, P, G>(e, piece.begin, piece.end, step);
  }
}

template <class P, class G, int capacity>
__global__ void __launch_bounds__(kThreads, kPackedBlocksPerSm<P>)
    packed_sgd_kernel(const __grid_constant__ SgdTable<capacity> table, const __grid_constant__ SgdArgs args) {
  const SgdStep step = read_step(args.options);
  if (step.skip) return;
  for (int64_t k = blockIdx.x; k < args.plan.pieces; k += gridDim.x) {
    const Piece piece = piece_at(table.entry, args.plan, k);
    const SgdEntry& e = table.entry[piece.tensor];
    if (e.kind == SgdKind::gather32) sgd_piece<SgdKind::gather32, P, G>(e, piece.begin, piece.end, step);
    else if (e.kind == SgdKind::gather64) sgd_piece<SgdKind::gather64, P, G>(e, piece.begin, piece.end, step);
    else sgd_piece<SgdKind::none, P, G>(e, piece.begin, piece.end, step);
  }
}

}  // namespace sparsekern::cuda
