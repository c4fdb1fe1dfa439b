// Qualifiers that let one header serve g++ and nvcc.
#ifndef FASTUNLEARN_CORE_PLATFORM_H_
#define FASTUNLEARN_CORE_PLATFORM_H_

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "fastunlearn: results are exact to the bit, which -ffast-math (-Ofast) would break"
#endif

#ifdef __CUDACC__
#define FASTUNLEARN_HD __host__ __device__ __forceinline__
#else
// Always inlined, so that no copy compiled for one SIMD level is linked into code for another.
#define FASTUNLEARN_HD inline __attribute__((always_inline))
#endif

#endif  // FASTUNLEARN_CORE_PLATFORM_H_
