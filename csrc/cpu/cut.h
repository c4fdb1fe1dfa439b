// The exact cut of a Top-K selection.
#ifndef FASTUNLEARN_CPU_CUT_H_
#define FASTUNLEARN_CPU_CUT_H_

#include <cstdint>

#include "cpu/stream.h"

namespace fastunlearn {

// Selected are the keys above `key`, and those equal to it up to the flat index `last_tie`.
struct Cut {
  uint32_t key = kMagnitude;
  int64_t last_tie = -1;  // kEveryTie: all of them
  int64_t ties = 0;       // elements whose key equals `key`
  int64_t ties_taken = 0;
  // Whether the records of the streaming read belong to this cut; else chunks are read again.
  bool recorded = true;
};

inline constexpr int64_t kEveryTie = INT64_MAX;

// The chunks whose keys are ranked together, and how many of them are selected.
struct Problem {
  int64_t first, last;
  int64_t k;
};

// Finds the cut of a problem with 1 <= k <= its number of elements, after `stream` has filled the
// records between the ends of the bracket.
Cut find_cut(const KeyReader& keys, const std::vector<Parameter>& parameters, const Chunks& chunks,
             const Problem& problem, Bracket bracket, const Execution& execution,
             const Records& records);

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CPU_CUT_H_
