// The update of one weight; the vector kernels do the same.
#ifndef FASTUNLEARN_CPU_ELEMENT_H_
#define FASTUNLEARN_CPU_ELEMENT_H_

#include <cstring>
#include <type_traits>

#include "core/half.h"
#include "cpu/kernels.h"

namespace fastunlearn {

inline bool is_finite(float x) { return (ScalarLanes::bits(x) & 0x7FFFFFFFu) < 0x7F800000u; }
inline bool is_finite(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return (bits & 0x7FFFFFFFFFFFFFFFu) < 0x7FF0000000000000u;
}

inline void round_to(float x, float* out) {
  *out = x == x ? x : ScalarLanes::from_bits(0x7FC00000u);
}
inline void round_to(float x, BFloat16* out) { *out = to_bfloat16(x); }
inline void round_to(float x, Float16* out) { *out = to_float16(x); }
inline void round_to(double x, double* out) {
  constexpr uint64_t kQuietNan = 0x7FF8000000000000u;
  if (x == x) {
    *out = x;
  } else {
    std::memcpy(out, &kQuietNan, sizeof(kQuietNan));
  }
}

inline double widen(double x) { return x; }
inline float widen(float x) { return x; }
inline float widen(BFloat16 x) { return to_float32(x); }
inline float widen(Float16 x) { return to_float32(x); }

// The new value of a weight: one multiply and one add in fp32 (fp64 weights: fp64), one rounding.
template <class T>
inline T update_element(T weight, float z, RowChange change, Tally* tally) {
  using Wide = decltype(widen(weight));
  const Wide old = widen(weight);
  Wide value = 0;
  if (change.mode != UpdateMode::kZero) {
    value = static_cast<Wide>(z) * static_cast<Wide>(change.scale);
    if (change.mode == UpdateMode::kAdd) value = old + value;
  }
  T out;
  round_to(value, &out);
  const Wide rounded = widen(out);
  tally->overflow += is_finite(old) && !is_finite(rounded);
  tally->unchanged += old == rounded;
  return out;
}

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CPU_ELEMENT_H_
