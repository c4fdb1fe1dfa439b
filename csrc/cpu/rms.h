// Root mean square of tensors, exact enough to be independent of the order of summation.
#ifndef FASTUNLEARN_CPU_RMS_H_
#define FASTUNLEARN_CPU_RMS_H_

#include "cpu/parameters.h"

namespace fastunlearn {

// Each |w|, rounded to fp32, is scaled by the power of two that brings the greatest below 2^30,
// rounded to an integer, squared and summed exactly; only the quotient and the root round.
// out: shape (number of tensors,); 0 for an empty tensor, NaN or infinity where it holds one.
void rms(const std::vector<Parameter>& tensors, const Execution& execution, double* out);

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CPU_RMS_H_
