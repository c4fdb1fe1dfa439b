// The kernels for AVX-512.
//
// Everything of ours is included inside the target region, everything of the standard library
// before it: an inline function of the library that was compiled here would be one the linker may
// hand to code that runs on any machine. Ours are always inlined or local to this file.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

// gcc 12 warns of its own _mm512_undefined_epi32.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,f16c,bmi,bmi2,popcnt")

#include "core/noise.h"
#include "cpu/kernels.h"
#include "cpu/lanes_avx512.h"

namespace fastunlearn {
namespace {

#include "cpu/kernels_impl.h"

}  // namespace

const Kernels& kernels_avx512() {
  static constexpr Kernels kTable = table<Avx512Lanes>();
  return kTable;
}

}  // namespace fastunlearn

#pragma GCC pop_options

#endif
