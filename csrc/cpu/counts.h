// Histograms of keys and of ties: what several processes count to find one cut together.
#ifndef FASTUNLEARN_CPU_COUNTS_H_
#define FASTUNLEARN_CPU_COUNTS_H_

#include <cstdint>
#include <vector>

#include "cpu/key_reader.h"

namespace fastunlearn {

// Bins of equal width: of 2^shift values, as many as `bins`, from a row's own first value on.
struct Bins {
  std::vector<int64_t> first;  // one for each row
  int shift;
  int64_t bins;
};

// What is counted, and to which row each parameter's elements go.
struct Counted {
  std::vector<Parameter> parameters;
  std::vector<int64_t> row;
  ScoreKind score;
  NanRule nan;
};

// Counts keys.
//   counts: shape (rows, bins + 1), overwritten; the last column has the NaN scores that are
//   refused.
void key_histogram(const Counted& counted, const Bins& bins, const Execution& execution,
                   int64_t* counts);

// Counts the elements whose key is their row's `key` (-1: none) by their flat index.
//   counts: shape (rows, bins), overwritten.
void tie_histogram(const Counted& counted, const std::vector<int64_t>& key, const Bins& bins,
                   const Execution& execution, int64_t* counts);

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CPU_COUNTS_H_
