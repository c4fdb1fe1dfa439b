// Integer division that costs a kernel no registers.
#ifndef FASTUNLEARN_CORE_DIVIDE_H_
#define FASTUNLEARN_CORE_DIVIDE_H_

#include <cstdint>

#include "core/platform.h"

namespace fastunlearn {

// a / b by shifts, for a >= 0 and b > 0.
FASTUNLEARN_HD int64_t divide_long(int64_t a, int64_t b) {
  int64_t quotient = 0;
  for (int bit = 62; bit >= 0; --bit) {
    if (a >> bit < b) continue;
    a -= b << bit;
    quotient |= int64_t{1} << bit;
  }
  return quotient;
}

// a / b, for a >= 0 and b > 0. On the device the division of 64-bit numbers is a call that the
// registers around it are spilled for; numbers beyond 32 bits are rare.
FASTUNLEARN_HD int64_t divide(int64_t a, int64_t b) {
#ifdef __CUDA_ARCH__
  if ((a | b) >> 32 == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return divide_long(a, b);
#else
  return a / b;
#endif
}

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CORE_DIVIDE_H_
