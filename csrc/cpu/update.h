// The write: noise on the chosen elements, all of them or none.
#ifndef FASTUNLEARN_CPU_UPDATE_H_
#define FASTUNLEARN_CPU_UPDATE_H_

#include <cstdint>
#include <vector>

#include "cpu/choice.h"

namespace fastunlearn {

// How the chosen elements change.
struct Change {
  std::vector<double> scale;  // one for each parameter
  Rng rng;
  NoiseKind noise;
  UpdateMode mode;
  Rounding rounding;
  bool allow_overflow;
};

// Changes the chosen elements in place. Where a finite weight would overflow and that is not
// allowed, every bit stays as it was.
//   stats: shape (number of parameters, kStatColumns); fills the columns selected, overflow and
//   unchanged.
void perturb(const std::vector<Parameter>& parameters, const Chunks& chunks, const Choice& choice,
             const Change& change, const Execution& execution, int64_t* stats);

// Noise that flat indices own; index, z: shape (count,).
void noise_at(const uint64_t* index, int64_t count, const Rng& rng, NoiseKind kind,
              const Execution& execution, float* z);

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CPU_UPDATE_H_
