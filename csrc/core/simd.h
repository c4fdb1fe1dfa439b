// SIMD levels a kernel can be compiled for, and which of them this CPU can run.
//
// Host only: detection happens once per process, outside any kernel.
#ifndef FASTUNLEARN_CORE_SIMD_H_
#define FASTUNLEARN_CORE_SIMD_H_

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

// The builtin also asks the OS whether it saves the wide registers, which CPUID alone cannot say.
inline bool simd_supported(SimdLevel level) {
  const bool avx2 = __builtin_cpu_supports("avx2");
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
