// Exact global Top-K over a list of tensors: one streaming read, then the write.
#ifndef FASTUNLEARN_CPU_TOPK_H_
#define FASTUNLEARN_CPU_TOPK_H_

#include <cstdint>
#include <vector>

#include "cpu/update.h"

namespace fastunlearn {

// What is to be selected. The set is unique: the first K elements in the order (key descending,
// flat index ascending).
struct TopK {
  std::vector<Parameter> parameters;
  std::vector<int64_t> k;  // one count, or one for each parameter where per_tensor
  bool per_tensor;
  ScoreKind score;
  NanRule nan;
};

// Perturbs the selected elements in place.
//   stats: shape (number of parameters, kStatColumns), overwritten. Where a refused NaN or overflow
//   is counted, no weight has changed.
void topk_perturb(const TopK& topk, const Change& change, const Execution& execution,
                  int64_t* stats);

// Selects.
//   packed: for each parameter ceil(numel / 8) bytes, overwritten; one bit for each element, least
//   significant first.
void topk_select(const TopK& topk, const Execution& execution, const std::vector<uint8_t*>& packed,
                 int64_t* stats);

// Writes a choice as packed bits and counts the selected into `stats`.
void pack(const Chunks& chunks, const Choice& choice, const Execution& execution,
          const std::vector<uint8_t*>& packed, int64_t* stats);

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CPU_TOPK_H_
