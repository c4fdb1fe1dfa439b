// How many keys to sample, and how many candidates that leaves: formulas of host and device.
#ifndef FASTUNLEARN_CUDA_SAMPLE_H_
#define FASTUNLEARN_CUDA_SAMPLE_H_

#include <cmath>
#include <cstdint>

#include "core/platform.h"
#include "cuda/tuning.h"

namespace fastunlearn::cuda {

// How far the number of sampled keys above the threshold may lie from the expected one.
FASTUNLEARN_HD double spread_of(double expected, double share) {
  const double third = kLogInverseMiss / 3;
  return third + ::sqrt(third * third + 2 * expected * (1 - share) * kLogInverseMiss);
}

// Keys to sample for a problem; 0 where all its elements are candidates, or none is selected.
inline int64_t sample_size(int64_t numel, int64_t k) {
  if (k == 0 || numel <= kSmallProblem) return 0;
  const double share = static_cast<double>(k) / static_cast<double>(numel);
  const auto best = static_cast<int64_t>(kSampleScale * share * (1 - share));
  const int64_t wanted = best < kSampleLeast ? kSampleLeast : best;
  const int64_t most = numel >> kSampleShift < kSampleLimit ? numel >> kSampleShift : kSampleLimit;
  return wanted < most ? wanted : most;
}

// Candidates to make room for in a problem; where there are more, all keys are searched.
inline int64_t candidate_room(int64_t numel, int64_t k, int64_t samples, bool coarse) {
  if (k == 0) return 0;
  if (samples == 0) return numel;
  const double share = static_cast<double>(k) / static_cast<double>(numel);
  const double spread = spread_of(share * static_cast<double>(samples), share);
  const double expected = 2 * spread / static_cast<double>(samples) * static_cast<double>(numel);
  const int64_t ties = coarse ? numel / kCoarseShare : 0;
  const int64_t room = static_cast<int64_t>(1.25 * expected) + ties + kCandidateLeast;
  return room < numel ? room : numel;
}

}  // namespace fastunlearn::cuda

#endif  // FASTUNLEARN_CUDA_SAMPLE_H_
