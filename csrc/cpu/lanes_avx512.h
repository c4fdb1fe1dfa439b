// Lane policy for AVX-512 F, BW, DQ and VL: vectors of 64 bytes. To be included where such code is
// allowed.
#ifndef FASTUNLEARN_CPU_LANES_AVX512_H_
#define FASTUNLEARN_CPU_LANES_AVX512_H_

#include <immintrin.h>

#include "cpu/lanes_vector.h"

namespace fastunlearn {

struct Avx512Lanes : VectorLanes<F32x16, U32x16, I32x16, U64x8, 16> {
  static inline F sqrt(F x) { return (F)_mm512_sqrt_ps((__m512)x); }

  static inline Wide mul_low(Wide a, uint32_t b) {
    return (Wide)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
  }

  static inline I max(I a, I b) { return (I)_mm512_max_epi32((__m512i)a, (__m512i)b); }

  static inline uint32_t greater(I a, I b) {
    return _mm512_cmpgt_epi32_mask((__m512i)a, (__m512i)b);
  }

  static inline U load_raw(const float* from) { return load_u(from); }
  template <class Half>
  static inline U load_raw(const Half* from) {
    return (U)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  // The lanes whose bit is set, and no others.
  static inline void store_raw(float* to, U raw, uint32_t chosen) {
    _mm512_mask_storeu_epi32(to, static_cast<__mmask16>(chosen), (__m512i)raw);
  }
  template <class Half>
  static inline void store_raw(Half* to, U raw, uint32_t chosen) {
    _mm256_mask_storeu_epi16(to, static_cast<__mmask16>(chosen),
                             _mm512_cvtepi32_epi16((__m512i)raw));
  }

  static inline F half_to_float(U raw) {
    return (F)_mm512_cvtph_ps(_mm512_cvtepi32_epi16((__m512i)raw));
  }
  static inline U float_to_half(F x) {
    return (U)_mm512_cvtepu16_epi32(_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
  }

  // In registers: compressing into memory is slow on some processors.
  static inline U pack(U x, uint32_t mask) {
    return (U)_mm512_maskz_compress_epi32(static_cast<__mmask16>(mask), (__m512i)x);
  }
  static inline U unpack(U x, uint32_t mask) {
    return (U)_mm512_maskz_expand_epi32(static_cast<__mmask16>(mask), (__m512i)x);
  }

  static inline void transpose(U (&w)[4]) {
    const __m512i low01 = _mm512_unpacklo_epi32((__m512i)w[0], (__m512i)w[1]);
    const __m512i high01 = _mm512_unpackhi_epi32((__m512i)w[0], (__m512i)w[1]);
    const __m512i low23 = _mm512_unpacklo_epi32((__m512i)w[2], (__m512i)w[3]);
    const __m512i high23 = _mm512_unpackhi_epi32((__m512i)w[2], (__m512i)w[3]);
    w[0] = (U)_mm512_unpacklo_epi64(low01, low23);
    w[1] = (U)_mm512_unpackhi_epi64(low01, low23);
    w[2] = (U)_mm512_unpacklo_epi64(high01, high23);
    w[3] = (U)_mm512_unpackhi_epi64(high01, high23);
  }
};

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CPU_LANES_AVX512_H_
