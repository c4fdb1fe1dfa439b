// Stochastic rounding of fp32 to 16-bit types, for any lane policy (core/lanes.h).
//
// A value between two numbers of the storage type becomes the one farther from zero where its
// random word is below the fraction of the gap that it has gone, in units of 2^-32 cut off, and the
// nearer one elsewhere. So the expected result is the value itself, to 2^-32 of the gap, and a
// value that the type holds keeps its bits. From the greatest finite number on, the next one is
// infinity.
#ifndef FASTUNLEARN_CORE_ROUNDING_H_
#define FASTUNLEARN_CORE_ROUNDING_H_

#include <cstdint>

#include "core/half.h"
#include "core/lanes.h"
#include "core/platform.h"

namespace fastunlearn {

template <class V>
FASTUNLEARN_HD typename V::U one_if_below(typename V::U word, typename V::U fraction) {
  return word < fraction ? V::splat_u(1u) : V::splat_u(0);
}

// Bits of a value that is no NaN to storage bits. The tag tells the storage type.
template <class V>
FASTUNLEARN_HD typename V::U round_stochastically(const BFloat16*, typename V::U bits,
                                                  typename V::U word) {
  return (bits >> 16) + one_if_below<V>(word, bits << 16);
}

template <class V>
FASTUNLEARN_HD typename V::U round_stochastically(const Float16*, typename V::U bits,
                                                  typename V::U word) {
  using U = typename V::U;
  const U zero = V::splat_u(0), infinity = V::splat_u(0x7C00u);
  const U magnitude = bits & V::splat_u(0x7FFFFFFFu), exponent = magnitude >> 23;
  const auto normal = exponent >= V::splat_u(113u);  // 2^-14, the least normal number
  const auto counts = exponent >= V::splat_u(71u);   // below 2^-56 of a gap it is 0
  const U significand = (magnitude & V::splat_u(0x7FFFFFu)) | V::splat_u(0x800000u);
  // In gaps of its own size the value is mantissa / 2^shift.
  const U mantissa = counts ? significand : zero;
  const U below = counts ? V::splat_u(126u) - exponent : V::splat_u(55u);
  const U shift = normal ? V::splat_u(13u) : below;
  const U whole = mantissa >> (shift > V::splat_u(31u) ? V::splat_u(31u) : shift);
  // Its fraction in units of 2^-32: mantissa * 2^(32 - shift), without what is whole.
  const auto deep = shift > V::splat_u(24u);
  const U up = deep ? zero : V::splat_u(24u) - shift, down = deep ? shift - V::splat_u(24u) : zero;
  const U fraction = mantissa << 8 << up >> down;
  const U gaps = normal ? ((exponent - V::splat_u(113u)) << 10) + whole : whole;
  const U rounded = gaps + one_if_below<V>(word, fraction);
  const U result = magnitude >= V::splat_u(0x47800000u) ? infinity : rounded;  // 2^16
  return (bits >> 16 & V::splat_u(0x8000u)) | result;
}

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CORE_ROUNDING_H_
