#include "cpu/parameters.h"

namespace fastunlearn {

Chunks::Chunks(const std::vector<Parameter>& parameters) {
  sums_.push_back(0);
  for (size_t i = 0; i < parameters.size(); ++i) {
    firsts_.push_back(size());
    const int64_t numel = parameters[i].weight.numel();
    for (int64_t start = 0; start < numel; start += kChunk) {
      const int count = static_cast<int>(std::min<int64_t>(kChunk, numel - start));
      chunks_.push_back({start, count, static_cast<int>(i)});
      sums_.push_back(sums_.back() + count);
    }
  }
  firsts_.push_back(size());
}

}  // namespace fastunlearn
