#include "cpu/bracket.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <vector>

namespace fastunlearn {
namespace {

struct Position {
  int parameter;
  int64_t local;
};

// Keys at one position in each of `size` equal strata, in their order. Strata make the positions
// ascend, and the bounds below hold for them as for independent draws (Hoeffding 1956).
std::vector<uint32_t> sample(const KeyReader& keys, const Chunks& chunks, int64_t first,
                             int64_t last, int64_t size, const Execution& execution) {
  constexpr int64_t kStrata = 256;  // of one task
  const int64_t total = chunks.elements(first, last);
  const int64_t width = total / size;
  std::vector<uint32_t> found(size);
  const auto draw = [&](int, int64_t task) {
    const int64_t start = task * kStrata;
    const int count = static_cast<int>(std::min(kStrata, size - start));
    Position positions[kStrata];
    uint32_t words[kStrata];
    execution.kernels->words_from(start / 4, kStrata / 4, {0, 0}, kStreamSample, words);
    int64_t chunk = first;
    for (int j = 0; j < count; ++j) {  // all are fetched before the first is read
      const int64_t i = start + j;
      const int64_t place = share_start(total, i, size) +
                            static_cast<int64_t>(static_cast<uint64_t>(words[j]) * width >> 32);
      chunk = chunks.containing(first, chunk, last, place);
      const int64_t inside = place - chunks.elements(first, chunk);
      positions[j] = {chunks[chunk].parameter, chunks[chunk].start + inside};
      keys.fetch(positions[j].parameter, positions[j].local);
    }
    for (int j = 0; j < count; ++j) {
      found[start + j] = keys.at(positions[j].parameter, positions[j].local);
    }
  };
  const int threads = static_cast<int>(std::min<int64_t>(execution.threads, size / 1024));
  parallel_for(threads, (size + kStrata - 1) / kStrata, draw);
  return found;
}

// The sample that costs least: m keys are drawn, and 2 n sqrt(2 p (1 - p) L / m) lie between the
// bounds. The share p is held away from 0 and 1, where the second term of the bounds takes over.
int64_t sample_size(int64_t total, double share) {
  const double p = std::clamp(share, 1e-3, 1 - 1e-3);
  const double spread = std::sqrt(2 * p * (1 - p) * kLogInverseMiss);
  const double best = std::pow(static_cast<double>(total) * spread / kDrawCost, 2.0 / 3);
  const int64_t wanted = std::clamp(static_cast<int64_t>(best), kSampleLeast, kSampleLimit);
  return std::min(wanted, total >> kSampleShift);
}

}  // namespace

uint32_t kth_greatest(uint32_t* keys, int64_t count, int64_t rank) {
  constexpr int kShift = 20;  // exponent and three bits: a few percent of all keys in a bin
  constexpr int64_t kWorthwhile = 1 << 12;
  uint32_t* end = keys + count;
  if (count >= kWorthwhile) {
    std::array<uint32_t, (kMagnitude >> kShift) + 1> bins{};
    for (const uint32_t* key = keys; key != end; ++key) ++bins[*key >> kShift];
    uint32_t bin = bins.size() - 1;
    while (rank > bins[bin]) rank -= bins[bin--];
    end = std::partition(keys, end, [bin](uint32_t key) { return key >> kShift == bin; });
  }
  std::nth_element(keys, keys + rank - 1, end, std::greater<uint32_t>());
  return keys[rank - 1];
}

Bracket find_bracket(const KeyReader& keys, const Chunks& chunks, int64_t first, int64_t last,
                     int64_t k, const Execution& execution) {
  const int64_t total = chunks.elements(first, last);
  const double share = static_cast<double>(k) / static_cast<double>(total);
  const int64_t size = sample_size(total, share);
  if (total <= kMaybeLimit || size == 0) return {0, kMagnitude};
  std::vector<uint32_t> found = sample(keys, chunks, first, last, size, execution);
  const double rank = share * static_cast<double>(size);
  const double third = kLogInverseMiss / 3;
  const double spread = third + std::sqrt(third * third + 2 * rank * (1 - share) * kLogInverseMiss);
  const auto above = static_cast<int64_t>(std::floor(rank - spread));
  const auto reach = static_cast<int64_t>(std::ceil(rank + spread));
  Bracket bracket{0, kMagnitude};
  if (above >= 1) bracket.hi = kth_greatest(found.data(), size, above);
  if (reach <= size) bracket.lo = kth_greatest(found.data(), size, reach);
  return bracket;
}

}  // namespace fastunlearn
