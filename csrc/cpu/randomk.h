// Exact Random-k: a uniform K-subset through a keyed permutation, in O(K) work.
#ifndef FASTUNLEARN_CPU_RANDOMK_H_
#define FASTUNLEARN_CPU_RANDOMK_H_

#include <cstdint>
#include <vector>

#include "cpu/update.h"

namespace fastunlearn {

// What is to be selected: perm(0..K-1), of the whole index space or of each tensor.
struct RandomK {
  std::vector<Parameter> parameters;
  std::vector<int64_t> k;  // one count, or one for each parameter where per_tensor
  bool per_tensor;
  int64_t total;  // size of the flat index space
  Rng rng;
};

// Perturbs the selected elements in place; arguments as in topk.h.
void randomk_perturb(const RandomK& randomk, const Change& change, const Execution& execution,
                     int64_t* stats);

void randomk_select(const RandomK& randomk, const Execution& execution,
                    const std::vector<uint8_t*>& packed, int64_t* stats);

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CPU_RANDOMK_H_
