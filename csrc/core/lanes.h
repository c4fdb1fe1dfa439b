// What the shared mathematics asks of a number type, and its answer for plain scalars.
//
// Philox, the noise and the permutation are templates over a lane policy, so that one source gives
// the scalar, the SIMD and the device code. A policy has
//   F, U, I       float32, uint32 and int32, one or several lanes, with the usual operators;
//   kLanes        how many;
//   splat_f, splat_u                          one value in all lanes;
//   bits, from_bits                           reinterpret F as U and back;
//   to_float                                  int32 to float32, rounded to nearest even;
//   sqrt                                      correctly rounded;
//   mul, add, sub, div                        one rounding each, never fused;
//   Wide, kParts  uint64 lanes, half as many where there are several, in so many parts;
//   widen, narrow                             the low halves of Wide from and to U;
//   splat_wide, mul_low                       the whole product of low halves.
// Comparisons give something that `?:` accepts. U and I convert into each other by a C-style cast,
// which keeps the bits for scalars and for vector types alike.
#ifndef FASTUNLEARN_CORE_LANES_H_
#define FASTUNLEARN_CORE_LANES_H_

#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/platform.h"

namespace fastunlearn {

// One value at a time; the host build relies on -ffp-contract=off, the device on explicit rounding.
struct ScalarLanes {
  using F = float;
  using U = uint32_t;
  using I = int32_t;
  static constexpr int kLanes = 1;

  static FASTUNLEARN_HD F splat_f(float x) { return x; }
  static FASTUNLEARN_HD U splat_u(uint32_t x) { return x; }

  static FASTUNLEARN_HD U bits(F x) {
#ifdef __CUDA_ARCH__
    return __float_as_uint(x);
#else
    U out;
    std::memcpy(&out, &x, sizeof(out));
    return out;
#endif
  }

  static FASTUNLEARN_HD F from_bits(U x) {
#ifdef __CUDA_ARCH__
    return __uint_as_float(x);
#else
    F out;
    std::memcpy(&out, &x, sizeof(out));
    return out;
#endif
  }

#ifdef __CUDA_ARCH__
  static FASTUNLEARN_HD F to_float(I x) { return __int2float_rn(x); }
  static FASTUNLEARN_HD F sqrt(F x) { return __fsqrt_rn(x); }
  static FASTUNLEARN_HD F mul(F a, F b) { return __fmul_rn(a, b); }
  static FASTUNLEARN_HD F add(F a, F b) { return __fadd_rn(a, b); }
  static FASTUNLEARN_HD F sub(F a, F b) { return __fsub_rn(a, b); }
  static FASTUNLEARN_HD F div(F a, F b) { return __fdiv_rn(a, b); }
#else
  static FASTUNLEARN_HD F to_float(I x) { return static_cast<F>(x); }
  static FASTUNLEARN_HD F sqrt(F x) { return std::sqrt(x); }
  static FASTUNLEARN_HD F mul(F a, F b) { return a * b; }
  static FASTUNLEARN_HD F add(F a, F b) { return a + b; }
  static FASTUNLEARN_HD F sub(F a, F b) { return a - b; }
  static FASTUNLEARN_HD F div(F a, F b) { return a / b; }
#endif

  using Wide = uint64_t;
  static constexpr int kParts = 1;
  static FASTUNLEARN_HD Wide splat_wide(uint32_t x) { return x; }
  static FASTUNLEARN_HD void widen(U x, Wide (&parts)[kParts]) { parts[0] = x; }
  static FASTUNLEARN_HD U narrow(const Wide (&parts)[kParts]) { return static_cast<U>(parts[0]); }
  static FASTUNLEARN_HD Wide mul_low(Wide a, uint32_t b) {
    return static_cast<uint64_t>(static_cast<uint32_t>(a)) * b;
  }
};

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CORE_LANES_H_
