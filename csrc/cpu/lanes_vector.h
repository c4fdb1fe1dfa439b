// The part of a lane policy (core/lanes.h) that compiler vector types give on every machine.
#ifndef FASTUNLEARN_CPU_LANES_VECTOR_H_
#define FASTUNLEARN_CPU_LANES_VECTOR_H_

#include <cstdint>
#include <cstring>

#include "core/half.h"

namespace fastunlearn {

typedef uint64_t U64x2 __attribute__((vector_size(16)));
typedef float F32x4 __attribute__((vector_size(16)));
typedef uint32_t U32x4 __attribute__((vector_size(16)));
typedef int32_t I32x4 __attribute__((vector_size(16)));
typedef uint64_t U64x4 __attribute__((vector_size(32)));
typedef float F32x8 __attribute__((vector_size(32)));
typedef uint32_t U32x8 __attribute__((vector_size(32)));
typedef int32_t I32x8 __attribute__((vector_size(32)));
typedef uint64_t U64x8 __attribute__((vector_size(64)));
typedef float F32x16 __attribute__((vector_size(64)));
typedef uint32_t U32x16 __attribute__((vector_size(64)));
typedef int32_t I32x16 __attribute__((vector_size(64)));

// Operators of vector types apply to each lane, rounded once under -ffp-contract=off.
template <class F_, class U_, class I_, class Wide_, int kLanes_>
struct VectorLanes {
  using F = F_;
  using U = U_;
  using I = I_;
  using Wide = Wide_;
  static constexpr int kLanes = kLanes_;
  static constexpr int kParts = 2;

  static inline F splat_f(float x) { return x - F{}; }  // 0 + x would lose the sign of -0
  static inline U splat_u(uint32_t x) { return U{} + x; }
  static inline U bits(F x) { return (U)x; }
  static inline F from_bits(U x) { return (F)x; }
  static inline F to_float(I x) { return __builtin_convertvector(x, F); }
  static inline F mul(F a, F b) { return a * b; }
  static inline F add(F a, F b) { return a + b; }
  static inline F sub(F a, F b) { return a - b; }
  static inline F div(F a, F b) { return a / b; }

  // Even lanes in the first part, odd ones in the second.
  static inline Wide splat_wide(uint32_t x) { return Wide{} + x; }
  static inline void widen(U x, Wide (&parts)[kParts]) {
    parts[0] = (Wide)x;
    parts[1] = (Wide)x >> 32;
  }
  static inline U narrow(const Wide (&parts)[kParts]) {
    return (U)((parts[0] & 0xFFFFFFFFu) | parts[1] << 32);
  }

  // Unaligned loads and stores.
  static inline U load_u(const void* from) {
    U out;
    std::memcpy(&out, from, sizeof(out));
    return out;
  }
  static inline F load_f(const float* from) {
    F out;
    std::memcpy(&out, from, sizeof(out));
    return out;
  }
  static inline void store_f(float* to, F x) { std::memcpy(to, &x, sizeof(x)); }
  static inline void store_u(uint32_t* to, U x) { std::memcpy(to, &x, sizeof(x)); }

  // Low and high halves of kLanes numbers.
  static inline void load_halves(const uint64_t* from, U* low, U* high) {
    U even = {}, odd = {};
    for (int i = 0; i < kLanes; ++i) {
      even[i] = 2 * i;
      odd[i] = 2 * i + 1;
    }
    const U first = load_u(from), second = load_u(from + kLanes / 2);
    *low = __builtin_shuffle(first, second, even);
    *high = __builtin_shuffle(first, second, odd);
  }

  static inline void store_halves(uint64_t* to, U low, U high) {
    U first = {}, second = {};
    for (int i = 0; i < kLanes / 2; ++i) {
      first[2 * i] = i;
      first[2 * i + 1] = kLanes + i;
      second[2 * i] = kLanes / 2 + i;
      second[2 * i + 1] = kLanes + kLanes / 2 + i;
    }
    const U front = __builtin_shuffle(low, high, first);
    const U back = __builtin_shuffle(low, high, second);
    std::memcpy(to, &front, sizeof(front));
    std::memcpy(to + kLanes / 2, &back, sizeof(back));
  }

  // 0, 1, 2, ... in the lanes.
  static inline U iota() {
    U out = {};
    for (int i = 0; i < kLanes; ++i) out[i] = static_cast<uint32_t>(i);
    return out;
  }

  // All ones in the lanes whose bit is set.
  static inline I mask_of(uint32_t bits) {
    const U bit = splat_u(1u) << iota();
    return (splat_u(bits) & bit) != splat_u(0);
  }
};

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CPU_LANES_VECTOR_H_
