// Launch plan and launchers of the selection; the kernels are in select.cuh and select_sweep.cuh.
#include <algorithm>
#include <vector>

#include "cuda/select_sweep.cuh"

namespace sparsekern::cuda {
namespace {

constexpr int kSweeps = 6;  // one that may fail, three that count, one that lists, one that finishes
constexpr size_t kChunkWords = 4064;

size_t align(size_t bytes) { return (bytes + 255) / 256 * 256; }

// Room for the 1 to 6 % that a bracket of a sample leaves; at least 2^(index bits - 7), see kSweeps.
int64_t list_capacity(int64_t numel) { return std::min(numel, numel / 12 + 4096); }

template <int words>
int upload_chunk(unsigned long long* to, const unsigned long long* from, size_t count, cudaStream_t stream) {
  SelectChunk<words> chunk;
  std::copy_n(from, count, chunk.word);
  const int blocks = static_cast<int>((count + kThreads - 1) / kThreads);
  SK_LAUNCH(select_upload_kernel<words>, blocks, kThreads, 0, stream, chunk, to, static_cast<int>(count));
  return static_cast<int>(cudaGetLastError());
}

template <class T>
int upload(unsigned char* to, const T* table, size_t count, cudaStream_t stream) {
  static_assert(sizeof(T) % 8 == 0);
  const auto* from = reinterpret_cast<const unsigned long long*>(table);
  auto* words = reinterpret_cast<unsigned long long*>(to);
  const size_t total = count * sizeof(T) / 8;
  for (size_t at = 0; at < total; at += kChunkWords) {
    const size_t n = std::min(kChunkWords, total - at);
    const int status = n <= 480 ? upload_chunk<480>(words + at, from + at, n, stream) : upload_chunk<kChunkWords>(words + at, from + at, n, stream);
    if (status) return status;
  }
  return 0;
}

// `count` segments, from `begin` on in the order of size classes.
int launch_short(const SelectTables& tables, int64_t begin, int64_t count, int numel, int threads, const DeviceProps& props, cudaStream_t stream) {
  if (count == 0) return 0;
  const int bytes = numel * static_cast<int>(sizeof(Rank));
  const int64_t slots = static_cast<int64_t>(props.sms) * std::min(2048 / threads, 220 * 1024 / (bytes + 10 * 1024));
  SK_LAUNCH(select_short_kernel, static_cast<int>(std::min(count, slots)), threads, bytes, stream, tables, begin, begin + count);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace

SelectPlan plan_select(SelectEntry* entries, size_t entry_count, SelectSegment* segments, size_t segment_count) {
  SelectPlan plan;
  for (size_t n = 0; n < segment_count; ++n) {
    SelectSegment& s = segments[n];
    s.numel = 0;
    for (int32_t i = s.entry_begin; i < s.entry_end; ++i) s.numel += entries[i].numel;
    const bool large = s.numel > kSmallSegment;
    s.first = static_cast<int32_t>(plan.granules);
    int64_t offset = 0;
    for (int32_t i = s.entry_begin; i < s.entry_end; ++i) {
      SelectEntry& e = entries[i];
      e.segment = static_cast<int32_t>(n);
      e.first = static_cast<int32_t>(plan.granules);
      e.offset = offset;
      offset += e.numel;
      if (large) plan.granules += (e.numel + kGranule - 1) / kGranule;
    }
    s.last = static_cast<int32_t>(plan.granules);
    s.state = large ? static_cast<int32_t>(plan.large) : -1;
    s.list = plan.candidates;
    s.capacity = large ? static_cast<uint32_t>(list_capacity(s.numel)) : 0;
    plan.candidates += s.capacity;
    ++(large ? plan.large : s.numel > kTinySegment ? plan.small : plan.tiny);
  }
  int64_t tiny = 0, small = plan.tiny, large = plan.tiny + plan.small;
  for (size_t n = 0; n < segment_count; ++n)
    segments[segments[n].state >= 0 ? large++ : segments[n].numel > kTinySegment ? small++ : tiny++].visit = static_cast<int32_t>(n);
  const auto place = [&](size_t bytes) {
    const size_t at = plan.bytes;
    plan.bytes += align(bytes);
    return at;
  };
  place(entry_count * sizeof(SelectEntry));
  plan.segments_at = place(segment_count * sizeof(SelectSegment));
  plan.cleared_at = place(static_cast<size_t>(plan.large) * kBins * sizeof(uint32_t));
  plan.states_at = place(static_cast<size_t>(plan.large) * sizeof(SelectState) + sizeof(uint32_t));
  plan.lists_at = place(static_cast<size_t>(plan.candidates) * sizeof(Rank));
  return plan;
}

int launch_select(const SelectEntry* entries, size_t entry_count, const SelectSegment* segments, size_t segment_count, const SelectPlan& plan,
                  void* workspace, const DeviceProps& props, cudaStream_t stream) {
  if (segment_count == 0) return 0;
  auto* bytes = static_cast<unsigned char*>(workspace);
  SelectTables t;
  t.entries = reinterpret_cast<const SelectEntry*>(bytes);
  t.segments = reinterpret_cast<const SelectSegment*>(bytes + plan.segments_at);
  t.bins = reinterpret_cast<uint32_t*>(bytes + plan.cleared_at);
  t.states = reinterpret_cast<SelectState*>(bytes + plan.states_at);
  t.lists = reinterpret_cast<Rank*>(bytes + plan.lists_at);
  t.done = reinterpret_cast<uint32_t*>(t.states + plan.large);
  t.tiny = plan.tiny;
  t.small = plan.small;
  t.large = plan.large;
  t.granules = plan.granules;
  t.entry_count = static_cast<int32_t>(entry_count);
  if (const int status = upload(bytes, entries, entry_count, stream)) return status;
  if (const int status = upload(bytes + plan.segments_at, segments, segment_count, stream)) return status;
  if (plan.small > 0) {
    const int most = kSmallSegment * sizeof(Rank);
    if (const cudaError_t status = cudaFuncSetAttribute(select_short_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most))
      return static_cast<int>(status);
  }
  if (const int status = launch_short(t, 0, plan.tiny, kTinySegment, kTinyThreads, props, stream)) return status;
  if (const int status = launch_short(t, plan.tiny, plan.small, kSmallSegment, kSmallThreads, props, stream)) return status;
  if (plan.large == 0) return 0;
  if (const cudaError_t status = cudaMemsetAsync(t.bins, 0, plan.lists_at - plan.cleared_at, stream)) return static_cast<int>(status);
  const int64_t slots = static_cast<int64_t>(props.sms) * kSweepBlocksPerSm;
  SK_LAUNCH(select_sample_kernel, static_cast<int>(std::min(plan.large, slots)), kSampleThreads, 0, stream, t);
  if (const cudaError_t status = cudaGetLastError()) return static_cast<int>(status);
  if (const cudaError_t status = cudaFuncSetAttribute(select_sweep_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSweepShared))
    return static_cast<int>(status);
  for (int k = 0; k < kSweeps; ++k) {
    SK_LAUNCH(select_sweep_kernel, static_cast<int>(std::min(plan.granules, slots)), kSweepThreads, kSweepShared, stream, t);
    if (const cudaError_t status = cudaGetLastError()) return static_cast<int>(status);
  }
  return 0;
}

}  // namespace sparsekern::cuda
