#include "binding/backend.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace fastunlearn {
namespace {

// what: where the name comes from, for messages.
SimdLevel parse(const std::string& what, const std::string& name) {
  for (const SimdLevel level : kSimdLevels) {
    if (name != simd_name(level)) continue;
    if (simd_supported(level)) return level;
    throw std::invalid_argument("fastunlearn: " + what + " must be one that this CPU has, got '" +
                                name + "'");
  }
  throw std::invalid_argument("fastunlearn: " + what + " must be portable, avx2 or avx512, got '" +
                              name + "'");
}

std::atomic<SimdLevel>& current() {
  static std::atomic<SimdLevel> level = [] {
    constexpr char kVariable[] = "FASTUNLEARN_SIMD";
    const char* const wanted = std::getenv(kVariable);
    const bool given = wanted != nullptr && *wanted != '\0';
    return given ? parse(kVariable, wanted) : highest_simd_level();
  }();
  return level;
}

}  // namespace

SimdLevel simd_level() { return current(); }

void set_simd_level(const std::string& name) { current() = parse("SIMD level", name); }

}  // namespace fastunlearn
