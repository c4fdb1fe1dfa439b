// Keys and scores: order, zeros, denormals, infinities, the three NaN rules, one rounding.
//
// The oracle works in double: it holds every fp32 number, denormal ones as normal ones, and every
// product of two of them, exactly.
#include "core/keys.h"

#include <cmath>
#include <cstdint>
#include <vector>

#include "check.h"
#include "core/lanes.h"

namespace {

using fastunlearn::key_of;
using fastunlearn::kInfinityKey;
using fastunlearn::NanRule;
using fastunlearn::ScalarLanes;
using fastunlearn::score_of;
using fastunlearn::ScoreKind;
using fastunlearn::testing::equal;
using fastunlearn::testing::holds;

constexpr NanRule kRules[] = {NanRule::kError, NanRule::kLargest, NanRule::kSmallest};

bool is_nan(uint32_t bits) { return (bits & 0x7FFFFFFFu) > 0x7F800000u; }

// Edges of every exponent with their neighbours, and random patterns; both signs, no NaN.
std::vector<uint32_t> patterns() {
  std::vector<uint32_t> found;
  for (uint32_t exponent = 0; exponent <= 255; exponent += exponent < 5 || exponent > 250 ? 1 : 6) {
    for (const uint32_t mantissa : {0u, 1u, 2u, 0x400000u, 0x7FFFFEu, 0x7FFFFFu}) {
      found.push_back(exponent << 23 | mantissa);
    }
  }
  uint32_t state = 1;
  for (int i = 0; i < 300; ++i) found.push_back(state = state * 1664525u + 1013904223u);
  const auto positive = found;
  for (const uint32_t bits : positive) found.push_back(bits ^ 0x80000000u);
  std::vector<uint32_t> numbers;
  for (const uint32_t bits : found) {
    if (!is_nan(bits)) numbers.push_back(bits);
  }
  return numbers;
}

void check_order(const std::vector<uint32_t>& numbers) {
  for (const uint32_t a : numbers) {
    const float x = ScalarLanes::from_bits(a);
    for (const NanRule rule : kRules) equal(key_of(x, rule), a & 0x7FFFFFFFu, "key of bits", a);
    for (const uint32_t b : numbers) {
      const float y = ScalarLanes::from_bits(b);
      const bool less = std::fabs(static_cast<double>(x)) < std::fabs(static_cast<double>(y));
      holds(less == (key_of(x, NanRule::kError) < key_of(y, NanRule::kError)), "order", a);
    }
  }
}

void check_special() {
  const auto key = [](uint32_t bits) {
    return key_of(ScalarLanes::from_bits(bits), NanRule::kError);
  };
  equal(key(0x80000000u), 0, "key of -0");
  equal(key(0), 0, "key of 0");
  equal(key(0x80000001u), 1, "key of the least denormal number");
  equal(key(0xFF800000u), 0x7F800000u, "key of -infinity");
  equal(kInfinityKey, 0x7F800000u, "kInfinityKey");
  for (const uint32_t sign : {0u, 0x80000000u}) {
    for (const uint32_t payload : {1u, 0x200000u, 0x400000u, 0x400001u, 0x7FFFFFu}) {
      const uint32_t bits = sign | 0x7F800000u | payload;
      const float nan = ScalarLanes::from_bits(bits);
      holds(key_of(nan, NanRule::kError) > kInfinityKey, "NaN is above infinity", bits);
      equal(key_of(nan, NanRule::kLargest), 0x7FFFFFFFu, "NaN as largest", bits);
      equal(key_of(nan, NanRule::kSmallest), 0, "NaN as smallest", bits);
    }
  }
}

void check_product(float actual, double exact, uint64_t at) {
  const float expected = static_cast<float>(exact);
  const uint32_t bits = ScalarLanes::bits(expected);
  if (is_nan(bits)) return holds(is_nan(ScalarLanes::bits(actual)), "product is NaN", at);
  equal(ScalarLanes::bits(actual), bits, "product", at);
}

void check_scores(const std::vector<uint32_t>& numbers) {
  for (const uint32_t a : numbers) {
    const float w = ScalarLanes::from_bits(a);
    const double wide = w;
    equal(ScalarLanes::bits(score_of(ScoreKind::kPlain, 2.0f, w)), a, "plain score", a);
    check_product(score_of(ScoreKind::kSquare, 2.0f, w), wide * wide, a);
    for (const uint32_t b : numbers) {
      const float s = ScalarLanes::from_bits(b);
      check_product(score_of(ScoreKind::kProduct, w, s), wide * static_cast<double>(s), a);
    }
  }
}

}  // namespace

int main() {
  const std::vector<uint32_t> numbers = patterns();
  check_order(numbers);
  check_special();
  check_scores(numbers);
  return fastunlearn::testing::finish();
}
