// The kernels for AVX2.
//
// Everything of ours is included inside the target region, everything of the standard library
// before it: an inline function of the library that was compiled here would be one the linker may
// hand to code that runs on any machine. Ours are always inlined or local to this file.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#pragma GCC push_options
#pragma GCC target("avx2,f16c,bmi,bmi2,popcnt")

#include "core/noise.h"
#include "cpu/kernels.h"
#include "cpu/lanes_avx2.h"

namespace fastunlearn {
namespace {

#include "cpu/kernels_impl.h"

}  // namespace

const Kernels& kernels_avx2() {
  static constexpr Kernels kTable = table<Avx2Lanes>();
  return kTable;
}

}  // namespace fastunlearn

#pragma GCC pop_options

#endif
