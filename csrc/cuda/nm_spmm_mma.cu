// The launcher of nm_mma_kernel.
#include "cuda/csr_spmm_launch.cuh"
#include "cuda/nm_spmm_mma.cuh"

namespace sparsekern::cuda {
namespace {

template <class T, int MT>
int launch(const NmArgs& a, cudaStream_t stream) {
  const int64_t row_tiles = a.rows / (16 * MT), blocks = row_tiles * ((a.n + kMmaColumns - 1) / kMmaColumns);
  if (blocks >= int64_t{1} << 31) return static_cast<int>(cudaErrorInvalidValue);
  const bool load_aligned = reinterpret_cast<uintptr_t>(a.b) % 16 == 0 && a.b_row * 2 % 16 == 0;
  const bool values_aligned = reinterpret_cast<uintptr_t>(a.val) % 16 == 0 && a.per_row % 8 == 0;
  const MmaCall call = {static_cast<int>(row_tiles), values_aligned, load_aligned, store_aligned(a)};
  SK_LAUNCH((&nm_mma_kernel<T, MT>), static_cast<unsigned>(blocks), kMmaThreads, kMmaStages * kMmaStageBytes<16 * MT>, stream, a, call);
  return static_cast<int>(cudaGetLastError());
}

template <class T>
int launch_typed(const NmArgs& a, cudaStream_t stream) {
  const int rows = mma_rows(a.v);
  return rows == 64 ? launch<T, 4>(a, stream) : rows == 32 ? launch<T, 2>(a, stream) : launch<T, 1>(a, stream);
}

}  // namespace

int launch_nm_mma(const NmArgs& args, void* workspace, cudaStream_t stream) {
  if (args.rows == 0 || args.n == 0) return 0;
  if (!mma_serves(args)) return static_cast<int>(cudaErrorInvalidValue);
  NmArgs a = args;
  if (const int status = turn_spmm_operand(a, workspace, stream)) return status;
  return a.type == SpmmType::bf16 ? launch_typed<__nv_bfloat16>(a, stream) : launch_typed<__half>(a, stream);
}

}  // namespace sparsekern::cuda
