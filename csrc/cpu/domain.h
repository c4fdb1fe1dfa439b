// The domains of Random-k: index ranges that have a permutation and a count of their own.
#ifndef FASTUNLEARN_CPU_DOMAIN_H_
#define FASTUNLEARN_CPU_DOMAIN_H_

#include <cstdint>
#include <vector>

#include "core/permutation.h"
#include "cpu/parameters.h"

namespace fastunlearn {

// An element of the call's tensors.
struct Place {
  int parameter;  // -1: the index belongs to none of them
  int64_t local;
};

// Finds the elements that flat indices belong to, in O(1) for usual lists of tensors.
class Locator {
 public:
  explicit Locator(const std::vector<Parameter>& parameters);

  Place find(int64_t index) const {
    if (index < low_) return {-1, 0};
    const int64_t bucket = (index - low_) >> shift_;
    if (bucket >= static_cast<int64_t>(first_.size())) return {-1, 0};
    for (size_t i = first_[bucket]; i < sorted_.size(); ++i) {
      if (index < sorted_[i].segment.base) break;
      const int64_t local = sorted_[i].segment.to_local(index);
      if (local >= 0) return {sorted_[i].parameter, local};
    }
    return {-1, 0};
  }

 private:
  struct Entry {
    Segment segment;
    int parameter;
  };

  std::vector<Entry> sorted_;    // by base
  std::vector<uint32_t> first_;  // for each bucket of indices the first entry that reaches into it
  int64_t low_ = 0;
  int shift_ = 0;
};

// Images of a permutation that one task computes.
inline constexpr int kImages = 1024;

// One problem of Random-k: k elements of the indices base .. base + size.
struct Domain {
  int64_t base, size, k;
  Permutation permutation;
  size_t begin, end;  // its parameters
};

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CPU_DOMAIN_H_
