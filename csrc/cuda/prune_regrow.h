// What prune_regrow_ asks of the GPU beside two selections (select.h): the pass over what flips.
#pragma once
#include "cuda/launch.h"
#include "cuda/select.h"

namespace sparsekern::cuda {

struct FlipEntry {
  void* mask;                           // read and written
  const uint32_t *kept, *grown;         // packed bits; the new mask is their union
  void *weight, *momentum;              // null: nothing becomes 0 there
  int64_t numel;                        // > 0
  int32_t first;                        // filled in by the launcher
  int32_t segment;                      // of the counts
  MaskForm mask_form;                   // bools or bits
  int8_t weight_width, momentum_width;  // bytes of an element
};

struct FlipOptions {
  bool zero_dropped, zero_grown;  // weights; a momentum becomes 0 at every flip
  int64_t *dropped, *grown;       // [segments], written
  int64_t segments;
};

// Returns a cudaError_t. Needs no workspace.
int launch_flips(FlipEntry* entries, size_t count, const FlipOptions& options, const DeviceProps& props, cudaStream_t stream);

}  // namespace sparsekern::cuda
