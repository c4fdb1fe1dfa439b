// Every function of csrc/core, instantiated for the device: compiled, never run. The only includes
// are the project's own, so that this also shows that they need nothing else.
#include "core/element.h"
#include "core/half.h"
#include "core/keys.h"
#include "core/lanes.h"
#include "core/noise.h"
#include "core/params.h"
#include "core/permutation.h"
#include "core/philox.h"
#include "core/platform.h"
#include "core/rounding.h"
#include "core/segment.h"

namespace fastunlearn {

// One element of each array for each thread; floats: 8 of them. No arithmetic on floats but that of
// the headers, so that the driver can look for an instruction with the wrong rounding.
__global__ void use_everything(float* floats, uint32_t* words, int64_t* indices, Rng rng,
                               Segment segment, ScoreKind kind, NanRule rule, UpdateMode mode) {
  const int i = threadIdx.x;
  const PhiloxKeys<ScalarLanes> keys(rng.seed);
  const auto block = philox_block<ScalarLanes>(words[i], 1, kStreamNoise, rng.step, keys);
  float* out = floats + 8 * i;
  out[0] = normal<ScalarLanes>(block.word[0]);
  out[1] = uniform<ScalarLanes>(block.word[1]);
  out[2] = laplace<ScalarLanes>(block.word[2]);
  out[3] = to_float32(to_bfloat16(out[4]));
  out[5] = to_float32(to_float16(out[6]));
  const RowChange change{0.1, mode, Rounding::kStochastic};
  Tally tally;
  out[3] = to_float32(update_element(to_bfloat16(out[3]), out[0], block.word[3], change, &tally));
  out[5] = to_float32(update_element(to_float16(out[5]), out[1], block.word[3], change, &tally));
  const float score = score_of(kind, out[6], out[7]);
  words[i] = mode == UpdateMode::kZero ? 0 : key_of(score, rule);
  const Permutation permutation = Permutation::make(segment.numel, rng, segment.base);
  const int64_t flat = segment.to_global(permutation(indices[i]));
  indices[i] = segment.one_row() ? segment.end() : segment.to_local(flat);
}

}  // namespace fastunlearn
