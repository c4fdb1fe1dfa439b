// Suspends flush-to-zero and other rounding modes of the calling thread.
#ifndef FASTUNLEARN_CPU_FLOAT_MODE_H_
#define FASTUNLEARN_CPU_FLOAT_MODE_H_

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace fastunlearn {

// While alive, arithmetic of this thread rounds to nearest even and keeps denormal numbers.
class IeeeMode {
 public:
#if defined(__x86_64__)
  IeeeMode() : saved_(_mm_getcsr()) {
    if (saved_ != kDefault) _mm_setcsr(kDefault);
  }
  ~IeeeMode() {
    if (saved_ != kDefault) _mm_setcsr(saved_);
  }
#elif defined(__aarch64__)
  IeeeMode() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    if (saved_ != kDefault) asm volatile("msr fpcr, %0" : : "r"(kDefault));
  }
  ~IeeeMode() {
    if (saved_ != kDefault) asm volatile("msr fpcr, %0" : : "r"(saved_));
  }
#else
  IeeeMode() = default;
#endif
  IeeeMode(const IeeeMode&) = delete;
  IeeeMode& operator=(const IeeeMode&) = delete;

 private:
#if defined(__x86_64__)
  static constexpr unsigned int kDefault = 0x1F80;  // all exceptions masked, nothing flushed
  unsigned int saved_;
#elif defined(__aarch64__)
  static constexpr uint64_t kDefault = 0;
  uint64_t saved_;
#endif
};

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CPU_FLOAT_MODE_H_
