// What the kernels do with one element: find it, and make its noise.
#ifndef FASTUNLEARN_CUDA_ELEMENT_CUH_
#define FASTUNLEARN_CUDA_ELEMENT_CUH_

#include <cstdint>

#include "core/noise.h"
#include "core/params.h"
#include "core/philox.h"
#include "cuda/table.h"

namespace fastunlearn::cuda {

// The elements of a tensor by their local numbers.
template <class T>
class Elements {
 public:
  __device__ explicit Elements(const Memory& memory)
      : data_(static_cast<T*>(memory.data)), strided_(memory.dims == 0 ? nullptr : &memory) {}

  __device__ T& operator[](int64_t local) const {
    return data_[strided_ == nullptr ? local : strided_->offset(local)];
  }

 private:
  T* const data_;
  const Memory* const strided_;  // null where contiguous
};

// Four words of a stream, for the flat indices from 4 * block on.
__device__ inline PhiloxBlock<ScalarLanes> word_block(uint64_t block, uint32_t stream,
                                                      const Rng& rng) {
  const PhiloxKeys<ScalarLanes> keys(rng.seed);
  return philox_block<ScalarLanes>(static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
                                   stream, rng.step, keys);
}

// The word of a stream that a flat index owns.
__device__ inline uint32_t word_of(uint64_t index, uint32_t stream, const Rng& rng) {
  const auto block = word_block(index >> 2, stream, rng);
  const uint32_t low = (index & 1) != 0 ? block.word[1] : block.word[0];
  const uint32_t high = (index & 1) != 0 ? block.word[3] : block.word[2];
  return (index & 2) != 0 ? high : low;
}

__device__ inline float noise_of(NoiseKind kind, uint32_t word) {
  if (kind == NoiseKind::kUniform) return uniform<ScalarLanes>(word);
  return kind == NoiseKind::kLaplace ? laplace<ScalarLanes>(word) : normal<ScalarLanes>(word);
}

}  // namespace fastunlearn::cuda

#endif  // FASTUNLEARN_CUDA_ELEMENT_CUH_
