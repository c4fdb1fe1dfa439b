#include "cpu/domain.h"

#include <algorithm>

namespace fastunlearn {

Locator::Locator(const std::vector<Parameter>& parameters) {
  constexpr int64_t kBuckets = 1 << 12;
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (parameters[i].segment.numel > 0) {
      sorted_.push_back({parameters[i].segment, static_cast<int>(i)});
    }
  }
  std::stable_sort(sorted_.begin(), sorted_.end(),
                   [](const Entry& a, const Entry& b) { return a.segment.base < b.segment.base; });
  int64_t high = 0;
  for (const Entry& entry : sorted_) high = std::max(high, entry.segment.end());
  if (sorted_.empty()) return;
  low_ = sorted_[0].segment.base;
  const auto wanted = std::min<int64_t>(kBuckets, 4 * static_cast<int64_t>(sorted_.size()));
  while ((high - low_ - 1) >> shift_ >= wanted) ++shift_;
  first_.assign(((high - low_ - 1) >> shift_) + 1, static_cast<uint32_t>(sorted_.size()));
  for (size_t i = sorted_.size(); i-- > 0;) {
    const int64_t from = (sorted_[i].segment.base - low_) >> shift_;
    const int64_t to = (sorted_[i].segment.end() - 1 - low_) >> shift_;
    std::fill(first_.begin() + from, first_.begin() + to + 1, static_cast<uint32_t>(i));
  }
}

}  // namespace fastunlearn
