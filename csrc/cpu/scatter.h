// Random-k in O(K): each selected element is found and written by itself.
#ifndef FASTUNLEARN_CPU_SCATTER_H_
#define FASTUNLEARN_CPU_SCATTER_H_

#include <cstdint>
#include <vector>

#include "cpu/domain.h"
#include "cpu/update.h"

namespace fastunlearn {

// Sets the statistics to those of a call that has no threshold and has selected nothing yet.
void start_stats(size_t parameters, int64_t* stats);

// Perturbs perm(0..k-1) of each domain; see `perturb` in update.h.
void scatter(const std::vector<Parameter>& parameters, const std::vector<Domain>& domains,
             const Change& change, const Execution& execution, int64_t* stats);

// Packs the same selection; see `topk_select`.
void scatter_bits(const std::vector<Parameter>& parameters, const std::vector<Domain>& domains,
                  const Execution& execution, const std::vector<uint8_t*>& packed, int64_t* stats);

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CPU_SCATTER_H_
