// The parameters of a call, and the chunks that threads draw.
#ifndef FASTUNLEARN_CPU_PARAMETERS_H_
#define FASTUNLEARN_CPU_PARAMETERS_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/segment.h"
#include "cpu/kernels.h"
#include "cpu/pool.h"
#include "cpu/tensor_view.h"
#include "cpu/tuning.h"

namespace fastunlearn {

struct Parameter {
  TensorView weight;
  TensorView score;  // Random-k: the weight again, never read
  Segment segment;
};

// How a call is carried out; none of it changes a result.
struct Execution {
  const Kernels* kernels;
  int threads;
};

// Where a share begins when so many elements are cut into equal shares; the product of the two
// counts would overflow.
constexpr int64_t share_start(int64_t elements, int64_t share, int64_t shares) {
  return elements / shares * share + elements % shares * share / shares;
}

// Threads that a read of so many elements is worth.
inline int reading_threads(int64_t elements, int limit) {
  return static_cast<int>(std::clamp<int64_t>(elements / kGrain, 1, limit));
}

// Threads that so many selected elements, or words of noise, are worth.
inline int useful_threads(int64_t selected, int limit) {
  return static_cast<int>(std::clamp<int64_t>(selected / kSelectedGrain, 1, limit));
}

// Elements start .. start + count of one parameter.
struct Chunk {
  int64_t start;  // a multiple of kChunk
  int count;      // at most kChunk
  int parameter;
};

// The chunks of a call, in the order of their elements, and how they are dealt out.
class Chunks {
 public:
  explicit Chunks(const std::vector<Parameter>& parameters);

  const Chunk& operator[](int64_t chunk) const { return chunks_[chunk]; }
  int64_t size() const { return static_cast<int64_t>(chunks_.size()); }
  // Chunks of one parameter: first .. last.
  int64_t first(size_t parameter) const { return firsts_[parameter]; }
  int64_t last(size_t parameter) const { return firsts_[parameter + 1]; }

  // Number of elements in chunks first .. last.
  int64_t elements(int64_t first, int64_t last) const { return sums_[last] - sums_[first]; }

  // The chunk, not before `from`, that holds element `place` of chunks first .. last in a row.
  int64_t containing(int64_t first, int64_t from, int64_t last, int64_t place) const {
    const auto begin = sums_.begin();
    const int64_t wanted = sums_[first] + place;
    if (wanted < sums_[from + 1]) return from;
    return std::upper_bound(begin + from + 1, begin + last, wanted) - begin - 1;
  }

  // Calls body(worker, chunk number) for chunks first .. last, small ones together, on as many of
  // the threads as that is worth; worker < reading_threads of their elements.
  template <class Body>
  void for_each(int64_t first, int64_t last, int threads, const Body& body) const {
    const int64_t total = elements(first, last);
    threads = reading_threads(total, threads);
    const int64_t shares = threads == 1 ? 1 : (total + kChunk - 1) / kChunk;
    parallel_for(threads, shares, [&](int worker, int64_t share) {
      const int64_t stop = boundary(first, last, share + 1, shares);
      for (int64_t i = boundary(first, last, share, shares); i < stop; ++i) body(worker, i);
    });
  }

 private:
  // The chunk that a share begins with.
  int64_t boundary(int64_t first, int64_t last, int64_t share, int64_t shares) const {
    if (share == shares) return last;
    const int64_t wanted = sums_[first] + share_start(elements(first, last), share, shares);
    const auto begin = sums_.begin();
    return std::lower_bound(begin + first, begin + last, wanted) - begin;
  }

  std::vector<Chunk> chunks_;
  std::vector<int64_t> sums_;    // elements before each chunk; one entry more than chunks
  std::vector<int64_t> firsts_;  // first chunk of each parameter; one entry more than parameters
};

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CPU_PARAMETERS_H_
