// One fault a run, by name, for the harness or a sanitizer to tell; and what depends on the
// schedule.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "cuda/launch.h"

namespace {

using fastunlearn::launch;

constexpr unsigned kFull = 0xFFFFFFFFu;

__global__ void overrun(unsigned* out) { out[threadIdx.x + 1] = threadIdx.x; }

__global__ void bounds(unsigned* out) {
  __shared__ unsigned values[64];
  values[threadIdx.x + 1] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
}

__global__ void misaligned(unsigned* out) {
  *reinterpret_cast<uint2*>(out + 2 * (threadIdx.x / 2) + 1) = uint2{1, 2};
}

__global__ void divergent(unsigned* out) {
  if (threadIdx.x < 40) {
    __syncthreads();
    out[threadIdx.x] = 1;
  } else {
    __syncthreads();
  }
}

__global__ void left_out(unsigned* out) { out[threadIdx.x] = __ballot_sync(0xFFFF0000u, 1); }

__global__ void absent(unsigned* out) {
  if (threadIdx.x != 7) out[threadIdx.x] = __shfl_down_sync(kFull, threadIdx.x, 1);
  __syncthreads();
}

__global__ void ended(unsigned* out) {
  if (threadIdx.x == 7) return;
  out[threadIdx.x] = __any_sync(kFull, 1);
}

__global__ void mixed(unsigned* out) {
  out[threadIdx.x] = threadIdx.x < 16 ? __any_sync(kFull, 1) : __all_sync(kFull, 1);
}

__global__ void masks(unsigned* out) {
  out[threadIdx.x] = __any_sync(threadIdx.x % 32 == 3 ? kFull : kFull - 1, 1);
}

__global__ void beyond(unsigned*) {
  if (threadIdx.x >= 64) __syncwarp();
}

__global__ void width(unsigned* out) { out[threadIdx.x] = __shfl_sync(kFull, 1u, 0, 24); }

__global__ void trap(unsigned* out) {
  if (threadIdx.x == 5) __trap();
  out[threadIdx.x] = 1;
}

__global__ void spin(unsigned* out) {
  while (atomicAdd(&out[0], 0u) == 0) __threadfence();
}

// What a lane outside the mask gives, and what is in a shared array that nobody wrote, in block 1
// as in block 0, though whichever came first did write.
__global__ void poison(unsigned* out) {
  __shared__ unsigned values[96];
  out[2 * blockIdx.x] = values[threadIdx.x];
  __syncthreads();
  values[threadIdx.x] = 1;
  if (threadIdx.x < 16) out[2 * blockIdx.x + 1] = __shfl_sync(0xFFFFu, 1u, 20);
}

// The order in which the threads come.
__global__ void order(unsigned* out) {
  const unsigned ticket = atomicAdd(&out[0], 1u);
  atomicXor(&out[1], ticket * (ticket * 31 + threadIdx.x) * 2654435761u);
}

// Without an atomic: blocks that run one after the other get the right number.
__global__ void count(unsigned* out) {
  const unsigned old = out[0];
  __syncthreads();
  out[0] = old + 1;
}

struct Case {
  const char* name;
  void (*kernel)(unsigned*);
  int blocks, threads;
};

constexpr Case kCases[] = {
    {"overrun", overrun, 1, 96},
    {"bounds", bounds, 1, 64},
    {"misaligned", misaligned, 1, 64},
    {"divergent", divergent, 3, 96},
    {"left_out", left_out, 1, 64},
    {"absent", absent, 1, 96},
    {"ended", ended, 1, 32},
    {"mixed", mixed, 1, 64},
    {"masks", masks, 1, 64},
    {"beyond", beyond, 1, 80},
    {"width", width, 1, 64},
    {"trap", trap, 2, 96},
    {"spin", spin, 1, 32},
    {"poison", poison, 2, 96},
    {"order", order, 1, 96},
    {"count", count, 8, 96},
};

}  // namespace

// Argument: name of the case. Prints the first four words that the kernel wrote.
int main(int, char** arguments) {
  for (const Case& chosen : kCases) {
    if (std::strcmp(chosen.name, arguments[1])) continue;
    std::vector<unsigned> out(96);
    out.shrink_to_fit();
    try {
      if (launch(chosen.kernel, chosen.blocks, chosen.threads, nullptr, out.data())) return 3;
    } catch (const simt::Error&) {
      return 1;
    }
    std::printf("%x %x %x %x\n", out[0], out[1], out[2], out[3]);
    return 0;
  }
  return 2;
}
