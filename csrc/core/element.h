// The update of one weight; the vector kernels do the same.
#ifndef FASTUNLEARN_CORE_ELEMENT_H_
#define FASTUNLEARN_CORE_ELEMENT_H_

#include <cstdint>
#include <cstring>

#include "core/half.h"
#include "core/lanes.h"
#include "core/params.h"
#include "core/platform.h"
#include "core/rounding.h"

namespace fastunlearn {

// How a row of selected weights changes.
struct RowChange {
  double scale;
  UpdateMode mode;
  Rounding rounding;
};

// What the update of some weights met.
struct Tally {
  int64_t overflow = 0;   // finite weights whose new value is not finite
  int64_t unchanged = 0;  // weights whose new value equals the old one
};

FASTUNLEARN_HD uint64_t bits_of(double x) {
#ifdef __CUDA_ARCH__
  return static_cast<uint64_t>(__double_as_longlong(x));
#else
  uint64_t out;
  std::memcpy(&out, &x, sizeof(out));
  return out;
#endif
}

FASTUNLEARN_HD double double_of(uint64_t bits) {
#ifdef __CUDA_ARCH__
  return __longlong_as_double(static_cast<long long>(bits));
#else
  double out;
  std::memcpy(&out, &bits, sizeof(out));
  return out;
#endif
}

FASTUNLEARN_HD bool is_finite(float x) {
  return (ScalarLanes::bits(x) & 0x7FFFFFFFu) < 0x7F800000u;
}
FASTUNLEARN_HD bool is_finite(double x) {
  return (bits_of(x) & 0x7FFFFFFFFFFFFFFFu) < 0x7FF0000000000000u;
}

FASTUNLEARN_HD void round_to(float x, float* out) {
  *out = x == x ? x : ScalarLanes::from_bits(0x7FC00000u);
}
FASTUNLEARN_HD void round_to(float x, BFloat16* out) { *out = to_bfloat16(x); }
FASTUNLEARN_HD void round_to(float x, Float16* out) { *out = to_float16(x); }
FASTUNLEARN_HD void round_to(double x, double* out) {
  *out = x == x ? x : double_of(0x7FF8000000000000u);
}

FASTUNLEARN_HD double widen(double x) { return x; }
FASTUNLEARN_HD float widen(float x) { return x; }
FASTUNLEARN_HD float widen(BFloat16 x) { return to_float32(x); }
FASTUNLEARN_HD float widen(Float16 x) { return to_float32(x); }

// old + z * scale, each rounded once.
FASTUNLEARN_HD float scaled_add(float old, float z, double scale, bool add) {
  const float step = ScalarLanes::mul(z, static_cast<float>(scale));
  return add ? ScalarLanes::add(old, step) : step;
}
FASTUNLEARN_HD double scaled_add(double old, float z, double scale, bool add) {
#ifdef __CUDA_ARCH__
  const double step = __dmul_rn(static_cast<double>(z), scale);
  return add ? __dadd_rn(old, step) : step;
#else
  const double step = static_cast<double>(z) * scale;
  return add ? old + step : step;
#endif
}

// Whether the update of weights of type T reads words of the rounding stream.
template <class T>
FASTUNLEARN_HD bool rounds_by_words(UpdateMode mode, Rounding rounding) {
  return sizeof(T) == 2 && rounding == Rounding::kStochastic && mode != UpdateMode::kZero;
}

// The new value of a weight: one multiply and one add in fp32 (fp64 weights: fp64), one rounding.
//   word: of the rounding stream; read where `rounds_by_words`
template <class T>
FASTUNLEARN_HD T update_element(T weight, float z, uint32_t word, RowChange change, Tally* tally) {
  using Wide = decltype(widen(weight));
  const Wide old = widen(weight);
  Wide value = 0;
  if (change.mode != UpdateMode::kZero) {
    value = scaled_add(old, z, change.scale, change.mode == UpdateMode::kAdd);
  }
  T out;
  round_to(value, &out);
  if constexpr (sizeof(T) == 2) {
    if (rounds_by_words<T>(change.mode, change.rounding) && value == value) {
      const uint32_t raw = round_stochastically<ScalarLanes>(&out, ScalarLanes::bits(value), word);
      out.bits = static_cast<uint16_t>(raw);
    }
  }
  const Wide rounded = widen(out);
  tally->overflow += is_finite(old) && !is_finite(rounded);
  tally->unchanged += old == rounded;
  return out;
}

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CORE_ELEMENT_H_
