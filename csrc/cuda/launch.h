// How a kernel is started, for nvcc and for the tests that run kernels on a CPU.
#ifndef FASTUNLEARN_CUDA_LAUNCH_H_
#define FASTUNLEARN_CUDA_LAUNCH_H_

#ifdef FASTUNLEARN_SIMT
#include "simt.h"
#else
#include <cuda_runtime.h>
#endif

#include <utility>

namespace fastunlearn {

// Starts `blocks` x `threads` threads of a kernel on a stream and returns what the start gave. The
// error is taken, not left behind: it must not come up again in somebody else's call.
template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), int blocks, int threads, cudaStream_t stream,
                   A&&... arguments) {
#ifdef FASTUNLEARN_SIMT
  return simt::launch(kernel, blocks, threads, stream, std::forward<A>(arguments)...);
#else
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  const cudaError_t status = cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...);
  const cudaError_t left = cudaGetLastError();
  return status != cudaSuccess ? status : left;
#endif
}

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CUDA_LAUNCH_H_
