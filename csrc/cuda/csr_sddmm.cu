// Launchers of csr_sddmm and coo_sddmm; the kernels are in csr_sddmm.cuh and csr_sddmm_staged.cuh.
#include "cuda/csr_sddmm.cuh"
#include "cuda/csr_sddmm_staged.cuh"

namespace sparsekern::cuda {
namespace {

// Rows of whole aligned 16-byte chunks are read in place.
bool copies(SddmmType type, const SddmmOperand& x, int64_t n) {
  const int64_t per_chunk = 16 / bytes_of(type);
  return x.by_columns || n % per_chunk != 0 || x.stride % per_chunk != 0 || reinterpret_cast<uintptr_t>(x.data) % 16 != 0;
}

// How a call is cut along n, and what lies where in its workspace.
struct Passes {
  int64_t slab, count;
  SddmmShape shape;
  bool keeps_low, in_place;                           // sums stand where the results will
  size_t a = 0, b = 0, sums = 0, low = 0, bytes = 0;  // offsets

  Passes(const SddmmCall& c, SddmmWay way) : shape(sddmm_shape(c)), keeps_low(c.n > kSddmmLong) {
    in_place = (c.out_type == SddmmType::f32 || c.out_type == SddmmType::f64) && (way == SddmmWay::gather || sddmm_parts(shape) == 1);
    slab = sddmm_slab(shape.rows, shape.cols, shape.n, shape.size);
    count = sddmm_passes(shape);
    const auto room = [&](int64_t size) {
      const size_t at = bytes;
      bytes += static_cast<size_t>((size + 255) / 256 * 256);
      return at;
    };
    const int64_t sum = shape.size == 8 ? 8 : 4;
    a = room(shape.copy_a ? shape.rows * slab * shape.size : 0);
    b = room(shape.copy_b ? shape.cols * slab * shape.size : 0);
    const int64_t places = in_place ? 0 : way == SddmmWay::staged ? sddmm_parts(shape) : count > 1 ? 1 : 0;
    sums = room(places * shape.entries * sum);
    low = room(keeps_low ? shape.entries * sum : 0);
  }
};

SddmmAlignSide align_side(const SddmmOperand& x, int64_t height, int64_t begin, int64_t slab, int64_t size, void* to, bool wanted) {
  const char* from = static_cast<const char*>(x.data) + (x.by_columns ? begin * x.stride : begin) * size;
  const int64_t pitch = slab * size / (size == 8 ? 8 : 4);
  const int across = static_cast<int>((pitch + 31) / 32), tiles = wanted ? static_cast<int>((height + 31) / 32) * across : 0;
  return {from, height, x.stride, x.by_columns, to, pitch, across, tiles};
}

// Calls each(a, a_pitch, b, b_pitch, chunks, pass) for every pass, its operands being rows of chunks.
template <class T, class Fn>
void each_pass(const SddmmCall& c, const Passes& passes, char* workspace, cudaStream_t stream, const Fn& each) {
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>>;
  const int64_t size = sizeof(T), slab = passes.slab;
  const bool copy_a = passes.shape.copy_a, copy_b = passes.shape.copy_b;
  for (int64_t pass = 0; pass < passes.count; ++pass) {
    const int64_t begin = pass * slab, n = std::min(c.n - begin, slab);
    if (copy_a || copy_b) {
      const SddmmAlignArgs align = {align_side(c.a, c.places.rows, begin, slab, size, workspace + passes.a, copy_a),
                                    align_side(c.b, c.places.cols, begin, slab, size, workspace + passes.b, copy_b), n};
      SK_LAUNCH(&sddmm_align_kernel<Bits>, align.a.tiles + align.b.tiles, kThreads, 0, stream, align);
    }
    each(copy_a ? workspace + passes.a : static_cast<const char*>(c.a.data) + begin * size, (copy_a ? slab : c.a.stride) * size,
         copy_b ? workspace + passes.b : static_cast<const char*>(c.b.data) + begin * size, (copy_b ? slab : c.b.stride) * size,
         static_cast<int>((n * size + 15) / 16), pass);
  }
}

unsigned blocks_for(int64_t entries) { return static_cast<unsigned>((entries + kThreads - 1) / kThreads); }

template <class T>
int launch_gather(const SddmmCall& c, char* workspace, cudaStream_t stream) {
  const Passes passes(c, SddmmWay::gather);
  void* sums = passes.in_place ? c.out : workspace + passes.sums;
  void* low = passes.keeps_low ? workspace + passes.low : nullptr;
  each_pass<T>(c, passes, workspace, stream, [&](const char* a, int64_t a_pitch, const char* b, int64_t b_pitch, int chunks, int64_t pass) {
    const bool first = pass == 0, last = pass == passes.count - 1;
    const SddmmGatherArgs args = {c.places, a, b, a_pitch, b_pitch, chunks, c.out, c.out_type, sums, low, first, last};
    SK_LAUNCH(&sddmm_gather_kernel<T>, blocks_for(c.places.entries), kThreads, 0, stream, args);
  });
  return static_cast<int>(cudaGetLastError());
}

template <class T>
int launch_staged(const SddmmCall& c, char* workspace, const DeviceProps& props, cudaStream_t stream) {
  const Passes passes(c, SddmmWay::staged);
  const SddmmStagedPlan plan = sddmm_staged_plan(passes.shape, props);
  const int shared = static_cast<int>(plan.shared_bytes());
  float* sums = reinterpret_cast<float*>(passes.in_place ? c.out : workspace + passes.sums);
  // Always the same bound: one that followed the shape could shrink under another host thread that is about to launch.
  if (const cudaError_t status = cudaFuncSetAttribute(&sddmm_staged_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, props.shared_bytes))
    return status;
  each_pass<T>(c, passes, workspace, stream, [&](const char* a, int64_t a_pitch, const char* b, int64_t b_pitch, int chunks, int64_t pass) {
    const SddmmStagedArgs args = {c.places, a, b, a_pitch, b_pitch, chunks, plan, sums, pass == 0};
    SK_LAUNCH(&sddmm_staged_kernel<T>, static_cast<unsigned>(plan.blocks()), kStagedThreads, shared, stream, args);
  });
  if (!passes.in_place)
    SK_LAUNCH(&sddmm_combine_kernel, blocks_for(c.places.entries), kThreads, 0, stream, sums, plan.parts, c.places.entries, c.out, c.out_type);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace

SddmmShape sddmm_shape(const SddmmCall& c) {
  return {c.places.rows,           c.places.cols, c.n, c.places.entries, bytes_of(c.type), copies(c.type, c.a, c.n), copies(c.type, c.b, c.n),
          c.places.crow != nullptr};
}

size_t sddmm_workspace_bytes(const SddmmCall& call, SddmmWay way) { return Passes(call, way).bytes; }

int launch_sddmm(const SddmmCall& call, SddmmWay way, void* workspace, const DeviceProps& props, cudaStream_t stream) {
  char* at = static_cast<char*>(workspace);
  if (call.places.entries == 0) return 0;
  if (way == SddmmWay::dense || !sddmm_can(way, sddmm_shape(call))) return static_cast<int>(cudaErrorInvalidValue);
  const bool staged = way == SddmmWay::staged;
  if (call.type == SddmmType::f32) return staged ? launch_staged<float>(call, at, props, stream) : launch_gather<float>(call, at, stream);
  if (call.type == SddmmType::bf16)
    return staged ? launch_staged<__nv_bfloat16>(call, at, props, stream) : launch_gather<__nv_bfloat16>(call, at, stream);
  if (call.type == SddmmType::f16) return staged ? launch_staged<__half>(call, at, props, stream) : launch_gather<__half>(call, at, stream);
  return launch_gather<double>(call, at, stream);
}

int launch_sddmm_sample(const SddmmPlaces& p, const float* dense, int64_t first, int64_t height, void* out, SddmmType out_type, const DeviceProps&,
                        cudaStream_t stream) {
  if (p.entries == 0 || height == 0) return 0;
  if (!p.crow) {
    SK_LAUNCH(&sddmm_sample_places_kernel, blocks_for(p.entries), kThreads, 0, stream, p, dense, first, height, out, out_type);
  } else {
    int lanes = 32;  // about two entries of a usual row for each
    while (lanes < kThreads && lanes * 2 * p.rows < p.entries) lanes *= 2;
    const int64_t per_block = kThreads / lanes;
    SK_LAUNCH(&sddmm_sample_rows_kernel, static_cast<unsigned>((height + per_block - 1) / per_block), kThreads, 0, stream, p, dense, first, height,
              lanes, out, out_type);
  }
  return static_cast<int>(cudaGetLastError());
}

}  // namespace sparsekern::cuda
