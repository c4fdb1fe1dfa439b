// Whether noise might make a selected weight overflow, told by magnitudes alone.
#ifndef FASTUNLEARN_CUDA_SCREEN_H_
#define FASTUNLEARN_CUDA_SCREEN_H_

#include <cstdint>

#include "cuda/table.h"

namespace fastunlearn::cuda {

// Sets header->suspicious unless no selected weight can overflow, whatever its noise.
//   bits: shape (tiles, kTileWords)
cudaError_t screen(const Table& table, const uint32_t* bits, const Device& device);

}  // namespace fastunlearn::cuda

#endif  // FASTUNLEARN_CUDA_SCREEN_H_
