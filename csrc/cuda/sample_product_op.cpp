// Checks and registration of sample_product and gse_candidates on CUDA. An infinite weight counts as the largest float: to find one, the
// host would have to wait.
#include <tuple>

#include "cuda/csr_tensors.h"
#include "cuda/sample_product.h"

namespace sparsekern {
namespace {

// The weights' tensors live while the launch is made; the caching allocator keeps their memory for the stream.
struct Weights {
  at::Tensor rows, cols, seed;
  cuda::SampleWeights view;
  Weights(const char* op, const at::Tensor& row_weights, const at::Tensor& col_weights, const at::Tensor& given_seed, int64_t num_samples) {
    cuda::check_cuda(op, "row_weights", row_weights);
    check_sampling(op, row_weights, col_weights, num_samples, given_seed, row_weights.device());
    rows = row_weights.contiguous(), cols = col_weights.contiguous(), seed = given_seed.contiguous();
    view = {rows.const_data_ptr<float>(), cols.const_data_ptr<float>(), rows.numel(), cols.numel()};
  }
};

std::tuple<at::Tensor, at::Tensor> sample_product_cuda(const at::Tensor& row_weights, const at::Tensor& col_weights, int64_t num_samples,
                                                       const at::Tensor& seed) {
  constexpr const char* kOp = "sample_product";
  const Weights w(kOp, row_weights, col_weights, seed, num_samples);
  const c10::Device device = row_weights.device();
  const c10::DeviceGuard guard(device);
  at::Tensor rows = at::empty({num_samples}, row_weights.options().dtype(at::kInt)), cols = at::empty({num_samples}, rows.options());
  if (num_samples == 0) return {rows, cols};
  check_some_weights(kOp, "row_weights", row_weights);
  check_some_weights(kOp, "col_weights", col_weights);
  const at::Tensor tables = cuda::scratch(cuda::sample_tables_bytes(w.view.n_rows, w.view.n_cols), device);
  const cuda::DeviceProps props = cuda::device_props(kOp, device);
  const cudaStream_t stream = cuda::current_stream(kOp, device);
  SK_CUDA_CHECK(kOp, cuda::launch_sample_tables(w.view, tables.mutable_data_ptr(), props, stream));
  const cuda::SampleDraws draws = {w.seed.const_data_ptr<int64_t>(), nullptr, num_samples, rows.mutable_data_ptr<int32_t>(),
                                   cols.mutable_data_ptr<int32_t>()};
  SK_CUDA_CHECK(kOp, cuda::launch_sample_draws(w.view.n_rows, w.view.n_cols, tables.mutable_data_ptr(), draws, props, stream));
  return {rows, cols};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> gse_candidates_cuda(const at::Tensor& row_weights, const at::Tensor& col_weights,
                                                                   const at::Tensor& crow, const at::Tensor& col, int64_t num_samples,
                                                                   const at::Tensor& seed, int64_t rounds) {
  constexpr const char* kOp = "gse_candidates";
  const Weights w(kOp, row_weights, col_weights, seed, num_samples);
  check_rounds(rounds);
  const c10::Device device = row_weights.device();
  check_same_device(kOp, "crow", crow, device);
  const cuda::CsrTensors p(kOp, crow, col, w.view.n_rows, w.view.n_cols);
  const c10::DeviceGuard guard(device);
  const int64_t inactive = p.view.rows * p.view.cols - p.view.nnz;
  const bool whole = p.view.nnz >= inactive;  // at least half of the matrix is active
  const int64_t length = whole ? std::max<int64_t>(inactive, 0) : num_samples;
  at::Tensor rows = at::empty({length}, col.options()), cols = at::empty({length}, col.options());
  at::Tensor count = at::empty({}, col.options().dtype(at::kLong));
  auto* const out_rows = rows.mutable_data_ptr<int32_t>();
  auto* const out_cols = cols.mutable_data_ptr<int32_t>();
  auto* const out_count = count.mutable_data_ptr<int64_t>();
  const cuda::DeviceProps props = cuda::device_props(kOp, device);
  const cudaStream_t stream = cuda::current_stream(kOp, device);
  if (whole || num_samples == 0) {
    SK_CUDA_CHECK(kOp, cuda::launch_csr_complement(p.view, length, out_rows, out_cols, out_count, props, stream));
  } else {
    const at::Tensor workspace = cuda::scratch(cuda::gse_candidates_workspace_bytes(length, w.view.n_rows, w.view.n_cols), device);
    SK_CUDA_CHECK(kOp, cuda::launch_gse_candidates(w.view, p.view, w.seed.const_data_ptr<int64_t>(), length, rounds, out_rows, out_cols, out_count,
                                                   workspace.mutable_data_ptr(), props, stream));
  }
  return {rows, cols, count};
}

}  // namespace

SK_CUDA_LIBRARY(m) {
  m.impl("sample_product", &sample_product_cuda);
  m.impl("gse_candidates", &gse_candidates_cuda);
}

}  // namespace sparsekern
