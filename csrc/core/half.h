// bfloat16 and float16 to and from float32 in integer arithmetic: round to nearest even, denormals
// kept whatever the floating-point mode, NaN results with the default payload.
#ifndef FASTUNLEARN_CORE_HALF_H_
#define FASTUNLEARN_CORE_HALF_H_

#include <cstdint>

#include "core/lanes.h"
#include "core/platform.h"

namespace fastunlearn {

// Storage types: the bits alone.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// A value of any storage type as fp32; fp64 is rounded once.
FASTUNLEARN_HD float to_float32(float x) { return x; }
FASTUNLEARN_HD float to_float32(double x) { return static_cast<float>(x); }

FASTUNLEARN_HD float to_float32(BFloat16 x) {
  return ScalarLanes::from_bits(static_cast<uint32_t>(x.bits) << 16);
}

FASTUNLEARN_HD float to_float32(Float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  uint32_t magnitude = x.bits & 0x7FFFu;
  if (magnitude >= 0x7C00u) {  // infinity and NaN
    return ScalarLanes::from_bits(sign | 0x7F800000u | (magnitude & 0x3FFu) << 13);
  }
  if (magnitude >= 0x400u) {
    return ScalarLanes::from_bits(sign | ((magnitude << 13) + (112u << 23)));
  }
  if (magnitude == 0) return ScalarLanes::from_bits(sign);
  uint32_t exponent = 113;  // denormal: shift the leading bit into place
  while ((magnitude & 0x400u) == 0) {
    magnitude <<= 1;
    --exponent;
  }
  return ScalarLanes::from_bits(sign | exponent << 23 | (magnitude & 0x3FFu) << 13);
}

FASTUNLEARN_HD BFloat16 to_bfloat16(float x) {
  const uint32_t bits = ScalarLanes::bits(x);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return {0x7FC0};
  return {static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16)};
}

FASTUNLEARN_HD Float16 to_float16(float x) {
  const uint32_t bits = ScalarLanes::bits(x);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return {0x7E00};
  if (magnitude >= 0x47800000u) return {static_cast<uint16_t>(sign | 0x7C00u)};  // >= 2^16
  if (magnitude >= 0x38800000u) {  // normal; a carry from rounding may reach infinity, rightly
    const uint32_t rounded = magnitude + 0xFFFu + (magnitude >> 13 & 1u);
    return {static_cast<uint16_t>(sign | ((rounded - (112u << 23)) >> 13))};
  }
  if (magnitude < 0x33000000u) return {static_cast<uint16_t>(sign)};  // < 2^-25
  const uint32_t shift = 126 - (magnitude >> 23);  // to units of 2^-24, in [14, 24]
  const uint32_t mantissa = (magnitude & 0x7FFFFFu) | 0x800000u;
  const uint32_t half = (1u << (shift - 1)) - 1 + (mantissa >> shift & 1u);
  return {static_cast<uint16_t>(sign | (mantissa + half) >> shift)};
}

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CORE_HALF_H_
