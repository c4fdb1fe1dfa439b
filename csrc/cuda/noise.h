// The two small operations: noise of given elements, and root mean squares.
#ifndef FASTUNLEARN_CUDA_NOISE_H_
#define FASTUNLEARN_CUDA_NOISE_H_

#include <cstddef>
#include <cstdint>

#include "cuda/table.h"

namespace fastunlearn::cuda {

// Noise of unit variance that flat indices own; index, z: shape (count,), on the device.
cudaError_t noise_at(const int64_t* index, int64_t count, NoiseKind kind, const RngSource& rng,
                     float* z, const Device& device);

// Root mean square of each tensor's weights; the bits of fastunlearn.reference.rms.
//   out: shape (count,), on the device
cudaError_t rms(Tensor* tensors, int count, void* workspace, size_t* workspace_bytes, double* out,
                const Device& device);

}  // namespace fastunlearn::cuda

#endif  // FASTUNLEARN_CUDA_NOISE_H_
