#include "binding/backend.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace fastunlearn {
namespace {

SimdLevel parse(const std::string& name) {
  for (const SimdLevel level : kSimdLevels) {
    if (name != simd_name(level)) continue;
    if (simd_supported(level)) return level;
    throw std::invalid_argument("fastunlearn: SIMD level must be one that this CPU has, got '" +
                                name + "'");
  }
  throw std::invalid_argument("fastunlearn: SIMD level must be portable, avx2 or avx512, got '" +
                              name + "'");
}

std::atomic<SimdLevel>& current() {
  static std::atomic<SimdLevel> level = [] {
    const char* const wanted = std::getenv("FASTUNLEARN_SIMD");
    return wanted != nullptr && *wanted != '\0' ? parse(wanted) : highest_simd_level();
  }();
  return level;
}

}  // namespace

SimdLevel simd_level() { return current(); }

void set_simd_level(const std::string& name) { current() = parse(name); }

}  // namespace fastunlearn
