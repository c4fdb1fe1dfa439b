// Scores to keys: the total order that the selection follows.
//
// A key is the bit pattern of the fp32 score with the sign cleared, compared as an integer. So -0
// equals +0, denormal numbers keep their order, an infinity is the greatest, and no floating-point
// compare takes part.
#ifndef FASTUNLEARN_CORE_KEYS_H_
#define FASTUNLEARN_CORE_KEYS_H_

#include <cstdint>

#include "core/lanes.h"
#include "core/platform.h"

namespace fastunlearn {

inline constexpr uint32_t kMagnitude = 0x7FFFFFFF;
inline constexpr uint32_t kInfinityKey = 0x7F800000;

// What becomes of a stored score s and a weight w.
enum class ScoreKind {
  kPlain,    // s: `grad`, given scores; with the weights as stored scores also `weight`
  kSquare,   // s * s: `fisher`
  kProduct,  // w * s: `taylor`
};

// What a NaN counts as.
enum class NanRule { kError, kLargest, kSmallest };

// Key of an fp32 score. Under kError a NaN keeps a key above kInfinityKey, for the caller to
// refuse.
FASTUNLEARN_HD uint32_t key_of(float score, NanRule rule) {
  const uint32_t key = ScalarLanes::bits(score) & kMagnitude;
  if (key <= kInfinityKey || rule == NanRule::kError) return key;
  return rule == NanRule::kLargest ? kMagnitude : 0;
}

FASTUNLEARN_HD float score_of(ScoreKind kind, float weight, float score) {
  if (kind == ScoreKind::kSquare) return ScalarLanes::mul(score, score);
  if (kind == ScoreKind::kProduct) return ScalarLanes::mul(weight, score);
  return score;
}

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CORE_KEYS_H_
