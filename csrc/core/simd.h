// SIMD levels a kernel can be compiled for, and which of them this CPU can run.
//
// Host only: detection happens once per process, outside any kernel.
#ifndef FASTUNLEARN_CORE_SIMD_H_
#define FASTUNLEARN_CORE_SIMD_H_

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#endif

namespace fastunlearn {

// Ascending: a CPU that runs one level runs every level before it.
enum class SimdLevel { kPortable, kAvx2, kAvx512 };

inline constexpr SimdLevel kSimdLevels[] = {SimdLevel::kPortable, SimdLevel::kAvx2,
                                            SimdLevel::kAvx512};

constexpr const char* simd_name(SimdLevel level) {
  switch (level) {
    case SimdLevel::kAvx2:
      return "avx2";
    case SimdLevel::kAvx512:
      return "avx512";
    case SimdLevel::kPortable:
      break;
  }
  return "portable";
}

#if defined(__x86_64__) && defined(__GNUC__)

// gcc before 11 does not know this one by name.
inline bool has_f16c() {
  unsigned int a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

// Every instruction set that the level's kernels are compiled for: a virtual machine may hide any.
// The builtin also asks the OS whether it saves the wide registers, which CPUID alone cannot say.
inline bool simd_supported(SimdLevel level) {
  const bool avx2 = __builtin_cpu_supports("avx2") && has_f16c() && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
  switch (level) {
    case SimdLevel::kAvx2:
      return avx2;
    case SimdLevel::kAvx512:
      return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case SimdLevel::kPortable:
      break;
  }
  return true;
}

#else

inline bool simd_supported(SimdLevel level) { return level == SimdLevel::kPortable; }

#endif

inline SimdLevel highest_simd_level() {
  SimdLevel found = SimdLevel::kPortable;
  for (const SimdLevel level : kSimdLevels) {
    if (simd_supported(level)) found = level;
  }
  return found;
}

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CORE_SIMD_H_
