// What csr_sddmm and coo_sddmm ask of the GPU: launchers over raw pointers, free of torch.
#pragma once
#include "cuda/launch.h"
#include "cuda/sddmm_cost.h"

namespace sparsekern::cuda {

enum class SddmmType : int8_t { f32, bf16, f16, f64 };
inline int bytes_of(SddmmType type) { return type == SddmmType::f32 ? 4 : type == SddmmType::f64 ? 8 : 2; }

// Where dots are asked for: the entries of a CSR pattern, or of a list whose valid number is on the device.
struct SddmmPlaces {
  const void* crow;    // [rows + 1], int64 where `wide`; or null, and then:
  const int32_t* row;  // [entries]
  const void* count;   // [1], int64 where `wide`; entries past it give 0 and are not looked at
  const int32_t* col;  // [entries]
  int64_t entries, rows, cols;
  bool wide;
};

// Element (i, j) at i * stride + j, or `by_columns` at i + j * stride.
struct SddmmOperand {
  const void* data;
  int64_t stride;
  bool by_columns;
};

// out[e] = sum over j < n of a[row(e), j] * b[col(e), j] for every e < entries; out is of `type`, or fp32 beside a half type.
struct SddmmCall {
  SddmmType type, out_type;
  SddmmPlaces places;
  SddmmOperand a, b;
  int64_t n;
  void* out;
};

// What the choice of the way goes by.
SddmmShape sddmm_shape(const SddmmCall& call);

// The two ways that are kernels of ours; staged where sddmm_can(SddmmWay::staged, ...).
size_t sddmm_workspace_bytes(const SddmmCall& call, SddmmWay way);
int launch_sddmm(const SddmmCall& call, SddmmWay way, void* workspace, const DeviceProps& props, cudaStream_t stream);

// out[e] = dense[row(e) - first, col(e)] for the entries in rows [first, first + height); dense is [height, cols], row-major. The call
// with first = 0 also writes the zeros past the count.
int launch_sddmm_sample(const SddmmPlaces& places, const float* dense, int64_t first, int64_t height, void* out, SddmmType out_type,
                        const DeviceProps& props, cudaStream_t stream);

}  // namespace sparsekern::cuda
