// Checks for stand-alone test programs: each prints its first failures and ends with one count.
#ifndef FASTUNLEARN_TESTS_CXX_CHECK_H_
#define FASTUNLEARN_TESTS_CXX_CHECK_H_

#include <cinttypes>
#include <cstdint>
#include <cstdio>

namespace fastunlearn::testing {

inline constexpr int64_t kFailuresShown = 10;
inline int64_t checks = 0;
inline int64_t failures = 0;

// Compares two integers or bit patterns; `at` says which of many cases it is.
inline void equal(uint64_t actual, uint64_t expected, const char* what, uint64_t at = 0,
                  int line = __builtin_LINE()) {
  ++checks;
  if (actual == expected || ++failures > kFailuresShown) return;
  std::printf("line %d: %s at %" PRIu64 " (0x%" PRIx64 ") must be 0x%" PRIx64 ", got 0x%" PRIx64
              "\n",
              line, what, at, at, expected, actual);
}

inline void holds(bool fact, const char* what, uint64_t at = 0, int line = __builtin_LINE()) {
  equal(fact ? 1 : 0, 1, what, at, line);
}

// Exit status of the program. The driver reads the count: a program that checked nothing has
// failed.
inline int finish() {
  std::printf("%" PRId64 " checks, %" PRId64 " failures\n", checks, failures);
  return failures == 0 && checks > 0 ? 0 : 1;
}

}  // namespace fastunlearn::testing

#endif  // FASTUNLEARN_TESTS_CXX_CHECK_H_
