// Lane policy for any machine: vectors of 16 bytes, whatever the compiler makes of them.
#ifndef FASTUNLEARN_CPU_LANES_PORTABLE_H_
#define FASTUNLEARN_CPU_LANES_PORTABLE_H_

#include <cmath>

#include "cpu/lanes_vector.h"

namespace fastunlearn {

struct PortableLanes : VectorLanes<F32x4, U32x4, I32x4, U64x2, 4> {
  static inline F sqrt(F x) {
    F out;
    for (int i = 0; i < kLanes; ++i) out[i] = std::sqrt(x[i]);
    return out;
  }

  static inline Wide mul_low(Wide a, uint32_t b) {
    return Wide{(a[0] & 0xFFFFFFFFu) * b, (a[1] & 0xFFFFFFFFu) * b};
  }

  static inline I max(I a, I b) { return a > b ? a : b; }

  // One bit for each lane.
  static inline uint32_t greater(I a, I b) {
    const I mask = (a > b) & I{1, 2, 4, 8};
    return static_cast<uint32_t>(mask[0] | mask[1] | mask[2] | mask[3]);
  }

  // Storage bits, zero-extended.
  static inline U load_raw(const float* from) { return load_u(from); }
  template <class Half>
  static inline U load_raw(const Half* from) {
    return U{from[0].bits, from[1].bits, from[2].bits, from[3].bits};
  }
  // Stores the lanes whose bit is set. The others hold what was read: the storage has them again.
  static inline void store_raw(float* to, U raw, uint32_t) { std::memcpy(to, &raw, sizeof(raw)); }
  template <class Half>
  static inline void store_raw(Half* to, U raw, uint32_t) {
    for (int i = 0; i < kLanes; ++i) to[i].bits = static_cast<uint16_t>(raw[i]);
  }

  static inline F half_to_float(U raw) {
    F out;
    for (int i = 0; i < kLanes; ++i) out[i] = to_float32(Float16{static_cast<uint16_t>(raw[i])});
    return out;
  }
  static inline U float_to_half(F x) {
    U out;
    for (int i = 0; i < kLanes; ++i) out[i] = to_float16(x[i]).bits;
    return out;
  }

  // Lanes whose bit is set, moved to the front, and back; other lanes are unspecified.
  static inline U pack(U x, uint32_t mask) {
    U out = {};
    int count = 0;
    for (int i = 0; i < kLanes; ++i) {
      if ((mask >> i & 1u) != 0) out[count++] = x[i];
    }
    return out;
  }
  static inline U unpack(U x, uint32_t mask) {
    U out = {};
    int count = 0;
    for (int i = 0; i < kLanes; ++i) {
      if ((mask >> i & 1u) != 0) out[i] = x[count++];
    }
    return out;
  }

  // Transposes the 4 x 4 matrices that the four vectors form in each group of four lanes.
  static inline void transpose(U (&w)[4]) {
    const U low01 = __builtin_shuffle(w[0], w[1], U{0, 4, 1, 5});
    const U high01 = __builtin_shuffle(w[0], w[1], U{2, 6, 3, 7});
    const U low23 = __builtin_shuffle(w[2], w[3], U{0, 4, 1, 5});
    const U high23 = __builtin_shuffle(w[2], w[3], U{2, 6, 3, 7});
    w[0] = __builtin_shuffle(low01, low23, U{0, 1, 4, 5});
    w[1] = __builtin_shuffle(low01, low23, U{2, 3, 6, 7});
    w[2] = __builtin_shuffle(high01, high23, U{0, 1, 4, 5});
    w[3] = __builtin_shuffle(high01, high23, U{2, 3, 6, 7});
  }
};

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CPU_LANES_PORTABLE_H_
