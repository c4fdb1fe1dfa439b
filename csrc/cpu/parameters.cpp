#include "cpu/parameters.h"

namespace fastunlearn {

Chunks::Chunks(const std::vector<Parameter>& parameters) {
  int64_t count = 0;
  for (const Parameter& parameter : parameters) {
    count += (parameter.weight.numel() + kChunk - 1) / kChunk;
  }
  chunks_.reserve(count);
  sums_.reserve(count + 1);
  firsts_.reserve(parameters.size() + 1);
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
