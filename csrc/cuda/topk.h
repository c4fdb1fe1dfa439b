// Exact global Top-K over a list of tensors: one streaming read, then the write.
#ifndef FASTUNLEARN_CUDA_TOPK_H_
#define FASTUNLEARN_CUDA_TOPK_H_

#include <cstddef>
#include <cstdint>

#include "core/keys.h"
#include "cuda/write.h"

namespace fastunlearn::cuda {

// What is to be selected; see csrc/cpu/topk.h.
struct TopK {
  Tensor* tensors;  // shape (count,), on the host; first_tile and first_sample are filled in
  int count;
  int64_t k;  // used unless per_tensor, where the tensors have theirs
  bool per_tensor;
  ScoreKind score;
  NanRule nan;
};

// Perturbs the selected elements in place, without waiting for the device: NaN scores and overflow
// make the kernels leave everything as it was and are told by the statistics.
//   scale: shape (count,), on the device, or null: the tensors have it
//   workspace: device memory, or null, when only *workspace_bytes is set
//   stats: shape (count, kStatColumns), on the device, overwritten
cudaError_t topk_perturb(const TopK& topk, const Change& change, const double* scale,
                         const RngSource& rng, void* workspace, size_t* workspace_bytes,
                         int64_t* stats, const Device& device);

// Selects.
//   bits: shape (tiles, kTileWords), on the device, overwritten: tensor i has those from its
//   first_tile on, one bit for each element, least significant first
cudaError_t topk_select(const TopK& topk, void* workspace, size_t* workspace_bytes, uint32_t* bits,
                        int64_t* stats, const Device& device);

}  // namespace fastunlearn::cuda

#endif  // FASTUNLEARN_CUDA_TOPK_H_
