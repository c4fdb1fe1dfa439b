// Lane policy for AVX2 and F16C: vectors of 32 bytes. To be included where AVX2 code is allowed.
#ifndef FASTUNLEARN_CPU_LANES_AVX2_H_
#define FASTUNLEARN_CPU_LANES_AVX2_H_

#include <immintrin.h>

#include "cpu/lanes_vector.h"

namespace fastunlearn {

// For each mask of eight lanes, in bytes: the lanes that are set, in order, and for each lane how
// many are set before it.
struct LaneTables {
  uint64_t chosen[256] = {};
  uint64_t rank[256] = {};

  constexpr LaneTables() {
    for (uint64_t mask = 0; mask < 256; ++mask) {
      uint64_t count = 0;
      for (uint64_t lane = 0; lane < 8; ++lane) {
        rank[mask] |= (count & 7) << 8 * lane;
        if ((mask >> lane & 1) == 0) continue;
        chosen[mask] |= lane << 8 * count;
        ++count;
      }
    }
  }
};
inline constexpr LaneTables kLaneTables;

struct Avx2Lanes : VectorLanes<F32x8, U32x8, I32x8, U64x4, 8> {
  static inline F sqrt(F x) { return (F)_mm256_sqrt_ps((__m256)x); }

  static inline Wide mul_low(Wide a, uint32_t b) {
    return (Wide)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
  }

  static inline I max(I a, I b) { return (I)_mm256_max_epi32((__m256i)a, (__m256i)b); }

  static inline uint32_t greater(I a, I b) {
    return static_cast<uint32_t>(_mm256_movemask_ps((__m256)(a > b)));
  }

  static inline U load_raw(const float* from) { return load_u(from); }
  template <class Half>
  static inline U load_raw(const Half* from) {
    return (U)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  // All lanes, like the portable level: a masked store (there is none of 16 bits) takes twice the
  // time of the whole update on the machine of tuning.h.
  static inline void store_raw(float* to, U raw, uint32_t) { std::memcpy(to, &raw, sizeof(raw)); }
  template <class Half>
  static inline void store_raw(Half* to, U raw, uint32_t) {
    const __m256i packed = _mm256_packus_epi32((__m256i)raw, (__m256i)raw);
    const __m128i ordered = _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), ordered);
  }

  static inline F half_to_float(U raw) {
    const __m256i packed = _mm256_packus_epi32((__m256i)raw, (__m256i)raw);
    return (F)_mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
  }
  static inline U float_to_half(F x) {
    return (U)_mm256_cvtepu16_epi32(_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
  }

  static inline U pack(U x, uint32_t mask) { return permute(x, kLaneTables.chosen[mask]); }
  static inline U unpack(U x, uint32_t mask) { return permute(x, kLaneTables.rank[mask]); }
  static inline U permute(U x, uint64_t lanes) {
    const __m128i bytes = _mm_cvtsi64_si128(static_cast<int64_t>(lanes));
    return (U)_mm256_permutevar8x32_epi32((__m256i)x, _mm256_cvtepu8_epi32(bytes));
  }

  static inline void transpose(U (&w)[4]) {
    const __m256i low01 = _mm256_unpacklo_epi32((__m256i)w[0], (__m256i)w[1]);
    const __m256i high01 = _mm256_unpackhi_epi32((__m256i)w[0], (__m256i)w[1]);
    const __m256i low23 = _mm256_unpacklo_epi32((__m256i)w[2], (__m256i)w[3]);
    const __m256i high23 = _mm256_unpackhi_epi32((__m256i)w[2], (__m256i)w[3]);
    w[0] = (U)_mm256_unpacklo_epi64(low01, low23);
    w[1] = (U)_mm256_unpackhi_epi64(low01, low23);
    w[2] = (U)_mm256_unpacklo_epi64(high01, high23);
    w[3] = (U)_mm256_unpackhi_epi64(high01, high23);
  }
};

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CPU_LANES_AVX2_H_
