// What sp24_compress and sp24_decompress ask of the GPU: launchers over raw pointers, free of torch.
#pragma once
#include "common/mask_view.h"
#include "cuda/launch.h"

namespace sparsekern::cuda {

struct Sp24Pack {
  const uint16_t* x;   // [rows, cols] of 16-bit floats, rows % 32 == 0 and cols % 64 == 0; both ways rows % 64 == 0
  MaskView mask;       // none: the largest are selected
  uint16_t infinity;   // its bits: which of the two formats x is in
  bool sm80;           // the order of e and et
  int64_t rows, cols;  // > 0
  uint16_t *v, *e;     // 16-byte aligned
  uint16_t *vt, *et;   // null: the rows only
};

struct Sp24Unpack {
  const uint16_t *v, *e;
  bool sm80;
  int64_t rows, cols;  // of the matrix, as above
  uint16_t* x;         // 16-byte aligned
};

// Return a cudaError_t; need no workspace.
int launch_sp24_compress(const Sp24Pack& args, const DeviceProps& props, cudaStream_t stream);
int launch_sp24_decompress(const Sp24Unpack& args, const DeviceProps& props, cudaStream_t stream);

}  // namespace sparsekern::cuda
