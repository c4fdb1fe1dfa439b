// Test values of the storage types, and the update of one weight as the design states it.
#ifndef FASTUNLEARN_TESTS_CXX_GENERATE_H_
#define FASTUNLEARN_TESTS_CXX_GENERATE_H_

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

// Word of the noise stream that a flat index owns.
inline uint32_t noise_word(uint64_t index, const Rng& rng) {
  const uint64_t block = index >> 2;
  const auto words =
      philox_block<ScalarLanes>(static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
                                kStreamNoise, rng.step, PhiloxKeys<ScalarLanes>(rng.seed));
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

// w + scale * z in the arithmetic of the weight: one multiply, one add, one rounding.
template <class T>
T changed(T old, float z, RowChange change) {
  using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;
  if (change.mode == UpdateMode::kZero) return narrow<T>(0);
  const Wide step = static_cast<Wide>(z) * static_cast<Wide>(change.scale);
  if (change.mode == UpdateMode::kReplace) return narrow<T>(step);
  if constexpr (std::is_same_v<T, double>) {
    return old + step;
  } else {
    return narrow<T>(to_float32(old) + step);
  }
}

// The same, with what it met; a NaN gets the default payload.
template <class T>
T updated(T old, float z, RowChange change, Tally* tally) {
  T fresh = changed(old, z, change);
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
