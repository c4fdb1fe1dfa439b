// Exact Random-k: a uniform K-subset through a keyed permutation, in O(K) work.
#ifndef FASTUNLEARN_CUDA_RANDOMK_H_
#define FASTUNLEARN_CUDA_RANDOMK_H_

#include <cstddef>
#include <cstdint>

#include "cuda/write.h"

namespace fastunlearn::cuda {

// What is to be selected: perm(0..k-1), of the whole index space or of each tensor.
struct RandomK {
  Tensor* tensors;  // shape (count,), on the host; first_tile is filled in
  int count;
  int64_t k;  // used unless per_tensor, where the tensors have theirs
  bool per_tensor;
  int64_t total;  // size of the flat index space
};

// Perturbs and selects; arguments as in topk.h.
cudaError_t randomk_perturb(const RandomK& randomk, const Change& change, const double* scale,
                            const RngSource& rng, void* workspace, size_t* workspace_bytes,
                            int64_t* stats, const Device& device);

cudaError_t randomk_select(const RandomK& randomk, const RngSource& rng, void* workspace,
                           size_t* workspace_bytes, uint32_t* bits, int64_t* stats,
                           const Device& device);

}  // namespace fastunlearn::cuda

#endif  // FASTUNLEARN_CUDA_RANDOMK_H_
