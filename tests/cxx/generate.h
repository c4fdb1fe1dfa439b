// Test values of the storage types, and the update of one weight as the design states it.
#ifndef FASTUNLEARN_TESTS_CXX_GENERATE_H_
#define FASTUNLEARN_TESTS_CXX_GENERATE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "core/half.h"
#include "core/lanes.h"
#include "core/noise.h"
#include "core/params.h"
#include "core/philox.h"
#include "cpu/kernels.h"
#include "cpu/tensor_view.h"

namespace fastunlearn::testing {

// A linear congruential generator, apart from the generator under test.
class Draw {
 public:
  explicit Draw(uint64_t seed) : state_(seed * 2 + 1) { word(); }

  uint32_t word() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state_ >> 32);
  }
  uint32_t below(uint32_t n) { return word() % n; }

 private:
  uint64_t state_;
};

template <class T>
T narrow(double x) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return to_bfloat16(static_cast<float>(x));
  } else if constexpr (std::is_same_v<T, Float16>) {
    return to_float16(static_cast<float>(x));
  } else {
    return static_cast<T>(x);
  }
}

template <class T>
uint64_t bits_of(T x) {
  uint64_t out = 0;
  std::memcpy(&out, &x, sizeof(x));
  return out;
}

template <class T>
T pattern(uint64_t bits) {
  T out;
  std::memcpy(&out, &bits, sizeof(out));
  return out;
}

// Finite numbers, mostly of ordinary size, with ties, zeros of both signs and denormal numbers.
template <class T>
std::vector<T> numbers(Draw* draw, int64_t count) {
  std::vector<T> out(static_cast<size_t>(count));
  for (T& x : out) {
    const double size = static_cast<double>(draw->word()) - 2147483648.0;
    switch (draw->below(8)) {
      case 0:
        x = narrow<T>(draw->below(5) - 2.0);
        break;
      case 1:
        x = pattern<T>((bits_of(narrow<T>(-1.0)) >> 4) % 100 + draw->below(3));  // denormal
        break;
      case 2:
        x = narrow<T>(draw->below(2) == 0 ? -0.0 : 0.0);
        break;
      default:
        x = narrow<T>(size * 0x1p-31);
    }
  }
  return out;
}

// Any pattern: numbers, and one in eight with random bits, infinite or NaN.
template <class T>
std::vector<T> values(Draw* draw, int64_t count) {
  std::vector<T> out = numbers<T>(draw, count);
  for (T& x : out) {
    const uint64_t random = uint64_t{draw->word()} << 32 | draw->word();
    if (draw->below(8) == 0) x = pattern<T>(random >> (64 - 8 * sizeof(T)));
    if (draw->below(32) == 0) x = narrow<T>(draw->below(2) == 0 ? INFINITY : -INFINITY);
  }
  return out;
}

// Word of a stream that a flat index owns.
inline uint32_t word_of(uint64_t index, uint32_t stream, const Rng& rng) {
  const uint64_t block = index >> 2;
  const auto words =
      philox_block<ScalarLanes>(static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
                                stream, rng.step, PhiloxKeys<ScalarLanes>(rng.seed));
  return words.word[index & 3];
}

inline float noise_of(NoiseKind kind, uint32_t word) {
  if (kind == NoiseKind::kUniform) return uniform<ScalarLanes>(word);
  return kind == NoiseKind::kLaplace ? laplace<ScalarLanes>(word) : normal<ScalarLanes>(word);
}

template <class T>
bool finite(T x) {
  return std::isfinite(to_float32(x));
}
template <>
inline bool finite(double x) {
  return std::isfinite(x);
}

// A finite number among those of a 16-bit type, as its distance from zero in gaps of its own size.
struct Gaps {
  double gap, whole;
  uint32_t fraction;  // in units of 2^-32, cut off
};

template <class T>
Gaps gaps_of(double x) {
  constexpr bool kHalf = std::is_same_v<T, Float16>;
  int exponent = 0;
  std::frexp(x, &exponent);
  const double gap = std::ldexp(1.0, std::max(exponent - 1, kHalf ? -14 : -126) - (kHalf ? 10 : 7));
  double whole = 0;
  const double fraction = std::modf(std::abs(x) / gap, &whole);
  return {gap, whole, static_cast<uint32_t>(fraction * 0x1p32)};
}

// One of the two neighbours of x, of which the word decides.
template <class T>
T stochastic(double x, uint32_t word) {
  if (!std::isfinite(x)) return narrow<T>(x);
  const Gaps gaps = gaps_of<T>(x);
  return narrow<T>(std::copysign((gaps.whole + (word < gaps.fraction ? 1 : 0)) * gaps.gap, x));
}

// w + scale * z in the arithmetic of the weight: one multiply, one add.
template <class T>
auto exact(T old, float z, RowChange change) {
  using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;
  if (change.mode == UpdateMode::kZero) return Wide{0};
  const Wide step = static_cast<Wide>(z) * static_cast<Wide>(change.scale);
  if (change.mode == UpdateMode::kReplace) return step;
  if constexpr (std::is_same_v<T, double>) {
    return old + step;
  } else {
    return to_float32(old) + step;
  }
}

// The same, rounded to the weight's type.
template <class T>
T changed(T old, float z, uint32_t word, RowChange change) {
  const auto value = exact(old, z, change);
  if constexpr (sizeof(T) == 2) {
    if (change.rounding == Rounding::kStochastic) return stochastic<T>(value, word);
  }
  return narrow<T>(value);
}

// The same, with what it met; a NaN gets the default payload.
template <class T>
T updated(T old, float z, uint32_t word, RowChange change, Tally* tally) {
  T fresh = changed(old, z, word, change);
  if constexpr (std::is_floating_point_v<T>) {
    if (std::isnan(fresh))
      fresh = std::is_same_v<T, float> ? pattern<T>(0x7FC00000u) : pattern<T>(0x7FF8000000000000u);
    tally->unchanged += old == fresh;
  } else {
    tally->unchanged += to_float32(old) == to_float32(fresh);
  }
  tally->overflow += finite(old) && !finite(fresh);
  return fresh;
}

}  // namespace fastunlearn::testing

#endif  // FASTUNLEARN_TESTS_CXX_GENERATE_H_
