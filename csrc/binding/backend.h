// Settings of the compiled CPU kernels.
#ifndef FASTUNLEARN_BINDING_BACKEND_H_
#define FASTUNLEARN_BINDING_BACKEND_H_

#include <string>

#include "core/simd.h"

namespace fastunlearn {

// The SIMD level in use: the highest that this CPU has, unless the environment variable
// FASTUNLEARN_SIMD or `set_simd_level` chose another. All levels give the same bits.
SimdLevel simd_level();

// Throws std::invalid_argument where the name is unknown or the CPU lacks the level.
void set_simd_level(const std::string& name);

}  // namespace fastunlearn

#endif  // FASTUNLEARN_BINDING_BACKEND_H_
