// Qualifiers that let one header serve g++ and nvcc.
#ifndef FASTUNLEARN_CORE_PLATFORM_H_
#define FASTUNLEARN_CORE_PLATFORM_H_

#ifdef __CUDACC__
#define FASTUNLEARN_HD __host__ __device__ __forceinline__
#else
// Always inlined, so that no copy compiled for one SIMD level is linked into code for another.
#define FASTUNLEARN_HD inline __attribute__((always_inline))
#endif

#endif  // FASTUNLEARN_CORE_PLATFORM_H_
