#include "cuda/element.cuh"
#include "cuda/noise.h"

namespace fastunlearn::cuda {
namespace {

__global__ void __launch_bounds__(kThreads)
    make_noise(const int64_t* index, int64_t count, NoiseKind kind, RngSource source, float* z) {
  const Rng rng = source.read();
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += step) {
    z[i] = noise_of(kind, word_of(static_cast<uint64_t>(index[i]), kStreamNoise, rng));
  }
}

}  // namespace

cudaError_t noise_at(const int64_t* index, int64_t count, NoiseKind kind, const RngSource& rng,
                     float* z, const Device& device) {
  return launch(make_noise, grid_for(device, count, kThreads), kThreads, device.stream, index,
                count, kind, rng, z);
}

}  // namespace fastunlearn::cuda
