// Checks and registration of csr_from_mask, csr_validate and csr_replace on CUDA. Only csr_from_mask without a count waits for the device.
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <optional>
#include <tuple>
#include <vector>

#include "cuda/csr_edit.h"
#include "cuda/csr_tensors.h"

namespace sparsekern {
namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> csr_from_mask_cuda(const at::Tensor& mask, const std::optional<at::Tensor>& values, int64_t nnz,
                                                                  bool index64) {
  constexpr const char* kOp = "csr_from_mask";
  cuda::check_cuda(kOp, "mask", mask);
  const int64_t cols = check_mask(mask, values), rows = mask.size(0), numel = mask.numel();
  const c10::Device device = mask.device();
  if (values) check_same_device(kOp, "values", *values, device);
  TORCH_CHECK_VALUE(nnz <= numel, kOp, ": nnz: expected the number of entries that are on (at most ", numel, "), got ", nnz);
  const c10::DeviceGuard guard(device);
  const cudaStream_t stream = cuda::current_stream(kOp, device);
  const at::Tensor dense = mask.contiguous(), source = values ? values->contiguous() : at::Tensor();
  const auto longs = mask.options().dtype(at::kLong);
  const int64_t tiles = cuda::mask_tiles(numel);
  at::Tensor ends = at::empty({tiles}, longs);
  const at::Tensor workspace = cuda::scratch(cuda::scan_workspace_bytes(tiles), device);
  SK_CUDA_CHECK(kOp, cuda::launch_mask_ends(dense.const_data_ptr(), numel, ends.mutable_data_ptr(), workspace.mutable_data_ptr(), stream));
  const int64_t count = nnz >= 0 ? nnz : tiles == 0 ? 0 : ends.select(0, tiles - 1).item<int64_t>();
  check_mask_count(count, index64);
  at::Tensor col = at::empty({count}, mask.options().dtype(at::kInt));
  at::Tensor val = values ? at::empty({count}, values->options()) : at::empty({0}, mask.options().dtype(at::kFloat));
  const auto pointers = index64 ? longs : longs.dtype(at::kInt);
  if (numel == 0) return {at::zeros({rows + 1}, pointers), col, val};
  at::Tensor crow = at::empty({rows + 1}, pointers);
  const cuda::MaskToCsr args = {dense.const_data_ptr(),
                                ends.const_data_ptr(),
                                rows,
                                cols,
                                values ? source.const_data_ptr() : nullptr,
                                static_cast<int>(val.element_size()),
                                crow.mutable_data_ptr(),
                                index64,
                                col.mutable_data_ptr<int32_t>(),
                                val.mutable_data_ptr(),
                                count};
  SK_CUDA_CHECK(kOp, cuda::launch_csr_from_mask(args, stream));
  return {crow, col, val};
}

cuda::ValueKind kind_of(const std::optional<at::Tensor>& val) {
  if (!val) return cuda::ValueKind::none;
  if (val->scalar_type() == at::kFloat) return cuda::ValueKind::f32;
  if (val->scalar_type() == at::kBFloat16) return cuda::ValueKind::bf16;
  return val->scalar_type() == at::kHalf ? cuda::ValueKind::f16 : cuda::ValueKind::f64;
}

at::Tensor csr_validate_cuda(const at::Tensor& crow, const at::Tensor& col, int64_t rows, int64_t cols, const std::optional<at::Tensor>& val) {
  constexpr const char* kOp = "csr_validate";
  constexpr int64_t kPointerCount = 1, kValueCount = 8;  // the fault codes that are seen without reading
  cuda::check_cuda(kOp, "crow", crow);
  check_validate_types(crow, col, val);
  const c10::Device device = crow.device();
  check_same_device(kOp, "col", col, device);
  if (val) check_same_device(kOp, "val", *val, device);
  const c10::DeviceGuard guard(device);
  const bool pointers = rows >= 0 && cols >= 0 && crow.dim() == 1 && col.dim() == 1 && crow.numel() - 1 == rows;
  const at::Tensor crow_c = crow.contiguous(), col_c = col.contiguous(), val_c = val ? val->contiguous() : at::Tensor();
  at::Tensor out = at::empty({3}, crow.options().dtype(at::kLong)), findings = at::empty({2}, out.options());
  cuda::Validate args = {};
  args.pattern = {crow_c.const_data_ptr(), col_c.const_data_ptr<int32_t>(), rows, cols, col.numel(), crow.scalar_type() == at::kLong};
  args.val = val ? val_c.const_data_ptr() : nullptr;
  args.kind = kind_of(val);
  args.known = !pointers ? kPointerCount : val && val->sizes() != col.sizes() ? kValueCount : 0;
  args.out = out.mutable_data_ptr<int64_t>();
  args.findings = static_cast<cuda::Count*>(findings.mutable_data_ptr());
  SK_CUDA_CHECK(kOp, cuda::launch_csr_validate(args, cuda::device_props(kOp, device), cuda::current_stream(kOp, device)));
  return out;
}

std::tuple<at::Tensor, at::Tensor, std::vector<at::Tensor>> csr_replace_cuda(const at::Tensor& crow, const at::Tensor& col, at::TensorList vals,
                                                                             const at::Tensor& drop, const at::Tensor& rows, const at::Tensor& cols,
                                                                             const at::Tensor& take, std::optional<at::TensorList> inserted,
                                                                             int64_t nnz) {
  constexpr const char* kOp = "csr_replace";
  const at::Tensor drop_c = checked_array("drop", drop, at::kBool, "nonzeros", col.numel());
  const at::Tensor rows_c = checked_array("rows", rows, at::kInt, "rows", rows.numel());
  const at::Tensor cols_c = checked_array("cols", cols, at::kInt, "rows", rows.numel());
  const at::Tensor take_c = checked_array("take", take, at::kBool, "rows", rows.numel());
  const cuda::CsrTensors p(kOp, crow, col, std::max<int64_t>(0, crow.numel() - 1), int64_t{1} << 31);
  const c10::Device device = crow.device();
  check_same_device(kOp, "drop", drop, device);
  check_same_device(kOp, "rows", rows, device);
  check_same_device(kOp, "cols", cols, device);
  check_same_device(kOp, "take", take, device);
  const int64_t after = nnz < 0 ? p.view.nnz : nnz;
  TORCH_CHECK_VALUE(rows.numel() < int64_t{1} << 31, kOp, ": rows: expected fewer than 2^31 candidates, got ", rows.numel());
  TORCH_CHECK_VALUE(after <= p.view.nnz + rows.numel(), kOp, ": nnz: expected at most ", p.view.nnz + rows.numel(),
                    " nonzeros after the change, got ", after);
  TORCH_CHECK_VALUE(p.view.wide || after < (int64_t{1} << 31), kOp, ": ", after, " nonzeros need int64 row pointers");
  const c10::DeviceGuard guard(device);
  const std::vector<MovedTensor> moved = moved_tensors(vals, inserted, p.view.nnz, rows.numel(), after, device);
  at::Tensor crow_new = at::empty({p.view.rows + 1}, crow.options()), col_new = at::empty({after}, col.options());
  std::vector<cuda::MovedArray> arrays;
  std::vector<at::Tensor> out;
  for (const MovedTensor& m : moved) {
    arrays.push_back({m.from.const_data_ptr(), m.inserted.defined() ? m.inserted.const_data_ptr() : nullptr, m.to.mutable_data_ptr(),
                      static_cast<int64_t>(m.from.element_size())});
    out.push_back(m.to);
  }
  const cuda::Replace args = {p.view,
                              static_cast<const uint8_t*>(drop_c.const_data_ptr()),
                              {rows_c.const_data_ptr<int32_t>(), cols_c.const_data_ptr<int32_t>(),
                               static_cast<const uint8_t*>(take_c.const_data_ptr()), rows.numel(), p.view.rows, p.view.cols},
                              crow_new.mutable_data_ptr(),
                              col_new.mutable_data_ptr<int32_t>(),
                              after};
  const at::Tensor workspace = cuda::scratch(cuda::csr_replace_workspace_bytes(p.view.rows, rows.numel()), device);
  SK_CUDA_CHECK(kOp, cuda::launch_csr_replace(args, arrays.data(), arrays.size(), workspace.mutable_data_ptr(), cuda::device_props(kOp, device),
                                              cuda::current_stream(kOp, device)));
  return {crow_new, col_new, out};
}

}  // namespace

SK_CUDA_LIBRARY(m) {
  m.impl("csr_from_mask", &csr_from_mask_cuda);
  m.impl("csr_validate", &csr_validate_cuda);
  m.impl("csr_replace", &csr_replace_cuda);
}

}  // namespace sparsekern
