// Walks a list of tensors in pieces of fixed size: one parallel loop for the whole list, and slots for partial sums
// that do not depend on the number of threads.
#pragma once
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace sparsekern {

constexpr int64_t kPiece = 1 << 15;  // elements; a multiple of 32, so packed mask words never straddle two pieces

struct Pieces {
  std::vector<int64_t> numel, first;  // elements of each tensor; number of its first piece, with the total at the end

  explicit Pieces(std::vector<int64_t> sizes) : numel(std::move(sizes)), first(numel.size() + 1, 0) {
    for (size_t i = 0; i < numel.size(); ++i) first[i + 1] = first[i] + (numel[i] + kPiece - 1) / kPiece;
  }
  int64_t count() const { return first.back(); }
  int64_t elements() const {
    int64_t sum = 0;
    for (int64_t n : numel) sum += n;
    return sum;
  }

  // fn(from, to), in parallel: the pieces that fall to one thread.
  template <class Fn>
  void shares(const Fn& fn) const {
    const int64_t total = count();
    if (total == 0) return;
    // Short lists stay on one thread: starting the others costs more than 64K elements of work.
    const int64_t grain = std::max<int64_t>(1, 2 * kPiece * total / std::max<int64_t>(1, elements()));
    at::parallel_for(0, total, grain, fn);
  }

  // fn(piece, tensor, begin, end) for the pieces [from, to), forwards or backwards.
  template <class Fn>
  void walk(int64_t from, int64_t to, const Fn& fn, bool reverse = false) const {
    if (from >= to) return;
    int64_t tensor = std::upper_bound(first.begin(), first.end(), reverse ? to - 1 : from) - first.begin() - 1;
    for (int64_t k = 0; k < to - from; ++k) {
      const int64_t piece = reverse ? to - 1 - k : from + k;
      while (piece >= first[tensor + 1]) ++tensor;
      while (piece < first[tensor]) --tensor;
      const int64_t begin = (piece - first[tensor]) * kPiece;
      fn(piece, tensor, begin, std::min(begin + kPiece, numel[tensor]));
    }
  }

  // fn(piece, tensor, begin, end), in parallel; a thread walks its pieces forwards, or backwards with `reverse`, which
  // lets a second pass start on what the first one left in cache.
  template <class Fn>
  void each(const Fn& fn, bool reverse = false) const {
    shares([&](int64_t from, int64_t to) { walk(from, to, fn, reverse); });
  }
};

}  // namespace sparsekern
