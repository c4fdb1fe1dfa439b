// Two keys between which the threshold lies, from a sample.
#ifndef FASTUNLEARN_CPU_BRACKET_H_
#define FASTUNLEARN_CPU_BRACKET_H_

#include <cstdint>

#include "cpu/key_reader.h"

namespace fastunlearn {

// Bracket of the k-th greatest key (1 <= k) among chunks first .. last. It may miss, with odds of
// exp(-kLogInverseMiss) on each side; that costs time, never the result.
Bracket find_bracket(const KeyReader& keys, const Chunks& chunks, int64_t first, int64_t last,
                     int64_t k, const Execution& execution);

// The rank-th greatest (1 <= rank <= count) of `keys`, which are left in another order.
uint32_t kth_greatest(uint32_t* keys, int64_t count, int64_t rank);

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CPU_BRACKET_H_
