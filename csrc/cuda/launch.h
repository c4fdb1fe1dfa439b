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

#if defined(FASTUNLEARN_SIMT) || defined(__CUDACC__)  // not where the binding reads the tables

// Starts `blocks` x `threads` threads of a kernel on a stream and returns what the start gave. The
// error is taken, not left behind: it must not come up again in somebody else's call.
template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), int blocks, int threads, cudaStream_t stream,
                   A&&... args) {
#ifdef FASTUNLEARN_SIMT
  return simt::launch(kernel, blocks, threads, stream, std::forward<A>(args)...);
#else
  // clang-format off
  kernel<<<blocks, threads, 0, stream>>>(std::forward<A>(args)...);
  // clang-format on
  return cudaGetLastError();
#endif
}

#endif

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CUDA_LAUNCH_H_
