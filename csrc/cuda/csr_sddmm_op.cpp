// Checks, choice of the way and registration of csr_sddmm and coo_sddmm on CUDA. Nothing here waits for the device.
#include "cuda/csr_sddmm_op.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <optional>
#include <string>

#include "common/csr_checks.h"
#include "common/sddmm_checks.h"
#include "cuda/csr_sddmm.h"
#include "cuda/stream.h"
#include "cuda/tf32.h"

namespace sparsekern {
namespace {

using cuda::SddmmOperand;
using cuda::SddmmPlaces;
using cuda::SddmmType;
using cuda::SddmmWay;

SddmmType type_of(at::ScalarType type) {
  return type == at::kFloat ? SddmmType::f32 : type == at::kBFloat16 ? SddmmType::bf16 : type == at::kHalf ? SddmmType::f16 : SddmmType::f64;
}

bool by_rows(const at::Tensor& t) { return t.stride(1) == 1 || t.size(1) <= 1; }
bool by_columns(const at::Tensor& t) { return t.stride(0) == 1 || t.size(0) <= 1; }

SddmmOperand operand(const at::Tensor& t) {
  const bool rows = by_rows(t);
  return {t.const_data_ptr(), rows ? t.stride(0) : t.stride(1), !rows};
}

// What the caller asks for, or nothing: then the cost model decides. What cannot go the way asked for is gathered.
std::optional<SddmmWay> asked_way(const char* op, c10::string_view algo) {
  TORCH_CHECK_VALUE(algo == "auto" || algo == "gather" || algo == "staged" || algo == "dense", op,
                    ": algo: expected 'auto', 'gather', 'staged' or 'dense', got '", std::string(algo.data(), algo.size()), "'");
  if (algo == "auto") return std::nullopt;
  return algo == "gather" ? SddmmWay::gather : algo == "staged" ? SddmmWay::staged : SddmmWay::dense;
}

// a b^T in fp32. fp32 operands follow torch's own switch for TF32.
at::Tensor product(const at::Tensor& a, const at::Tensor& b) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);  // it would narrow the operands
#ifdef SPARSEKERN_SIMT
  return at::mm(a.to(at::kFloat), b.to(at::kFloat).t());
#else
  return a.scalar_type() == at::kFloat ? at::mm(a, b.t()) : at::mm(a, b.t(), at::kFloat);
#endif
}

void dots(const char* op, const SddmmPlaces& places, const at::Tensor& a_given, const at::Tensor& b_given, const at::Tensor& out,
          std::optional<SddmmWay> asked) {
  if (places.entries == 0) return;
  const int64_t n = a_given.size(1);
  if (n == 0 || places.rows == 0 || places.cols == 0) {  // without rows or columns no entry is valid
    out.zero_();
    return;
  }
  const auto strided = [](const at::Tensor& t) { return by_rows(t) || by_columns(t) ? t : t.contiguous(); };
  const at::Tensor a = strided(a_given), b = strided(b_given);
  const cuda::SddmmCall call = {type_of(a.scalar_type()), type_of(out.scalar_type()), places, operand(a), operand(b), n, out.mutable_data_ptr()};
  cuda::SddmmShape shape = cuda::sddmm_shape(call);
  shape.tf32 = shape.size == 4 && cuda::tf32_allowed();
  const cuda::DeviceProps props = cuda::device_props(op, a.device());
  const cudaStream_t stream = cuda::current_stream(op, a.device());
  SddmmWay way = asked.value_or(cuda::sddmm_way(shape, props));
  if (!cuda::sddmm_can(way, shape)) way = SddmmWay::gather;
  if (way == SddmmWay::dense) {
    const int64_t height = cuda::sddmm_chunk_rows(places.rows, places.cols);
    for (int64_t first = 0; first < places.rows; first += height) {
      const at::Tensor chunk = product(a.narrow(0, first, std::min(height, places.rows - first)), b);
      SK_CUDA_CHECK(op,
                    cuda::launch_sddmm_sample(places, chunk.const_data_ptr<float>(), first, chunk.size(0), call.out, call.out_type, props, stream));
    }
    return;
  }
  const at::Tensor workspace = at::empty({static_cast<int64_t>(cuda::sddmm_workspace_bytes(call, way))}, a.options().dtype(at::kByte));
  SK_CUDA_CHECK(op, cuda::launch_sddmm(call, way, workspace.mutable_data_ptr(), props, stream));
}

at::Tensor csr_sddmm_cuda(const at::Tensor& crow, const at::Tensor& col, const at::Tensor& a, const at::Tensor& b, c10::string_view algo) {
  constexpr const char* kOp = "csr_sddmm";
  cuda::check_cuda(kOp, "a", a);
  check_sddmm_operands(kOp, a, b);
  check_pattern_shape(kOp, crow, col, a.size(0), b.size(0), a.device());
  asked_way(kOp, algo);
  const c10::DeviceGuard guard(a.device());
  const at::Tensor out = at::empty({col.numel()}, a.options());
  sddmm_into_cuda(kOp, crow, col, a, b, out, algo);
  return out;
}

at::Tensor coo_sddmm_cuda(const at::Tensor& rows, const at::Tensor& cols, const at::Tensor& count, const at::Tensor& a, const at::Tensor& b) {
  constexpr const char* kOp = "coo_sddmm";
  cuda::check_cuda(kOp, "a", a);
  check_sddmm_operands(kOp, a, b);
  check_places(kOp, "rows", rows, rows.numel());
  check_places(kOp, "cols", cols, rows.numel());
  check_count(kOp, count);
  check_same_device(kOp, "rows", rows, a.device());
  check_same_device(kOp, "cols", cols, a.device());
  check_same_device(kOp, "count", count, a.device());
  const c10::DeviceGuard guard(a.device());
  const at::Tensor row = rows.contiguous(), col = cols.contiguous(), out = at::empty({rows.numel()}, a.options());
  const SddmmPlaces places = {
      nullptr,   row.const_data_ptr<int32_t>(),   count.const_data_ptr(), col.const_data_ptr<int32_t>(), col.numel(), a.size(0),
      b.size(0), count.scalar_type() == at::kLong};
  dots(kOp, places, a, b, out, std::nullopt);
  return out;
}

}  // namespace

void sddmm_into_cuda(const char* op, const at::Tensor& crow, const at::Tensor& col, const at::Tensor& a, const at::Tensor& b, const at::Tensor& out,
                     c10::string_view algo) {
  const at::Tensor pointers = crow.contiguous(), columns = col.contiguous();
  const SddmmPlaces places = {pointers.const_data_ptr(), nullptr,   nullptr,   columns.const_data_ptr<int32_t>(),
                              columns.numel(),           a.size(0), b.size(0), pointers.scalar_type() == at::kLong};
  dots(op, places, a, b, out, asked_way(op, algo));
}

SK_CUDA_LIBRARY(m) {
  m.impl("csr_sddmm", &csr_sddmm_cuda);
  m.impl("coo_sddmm", &coo_sddmm_cuda);
}

}  // namespace sparsekern
