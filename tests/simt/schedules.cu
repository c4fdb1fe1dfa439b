// A reduction and a scan of a block under many schedules, each with one barrier that can be left
// out.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cuda/launch.h"

namespace fastunlearn::testing {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 2;

// The planted error: built with -DWITHOUT_BARRIER, this does not wait.
__device__ void planted_barrier() {
#ifndef WITHOUT_BARRIER
  __syncthreads();
#endif
}

// in, out: (kBlocks * kThreads,); every element of a block's part of out becomes the sum
__global__ void __launch_bounds__(kThreads)
    reduce(const uint32_t* __restrict__ in, uint32_t* __restrict__ out) {
  __shared__ uint32_t sums[kThreads / 32];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  uint32_t sum = in[i];
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, lanes);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  planted_barrier();  // without it, sums are read before they are written
  uint32_t total = 0;
  for (int warp = 0; warp < kThreads / 32; ++warp) total += sums[warp];
  out[i] = total;
}

// in, out: (kBlocks * kThreads,); inclusive sums within each block
__global__ void __launch_bounds__(kThreads)
    scan(const uint32_t* __restrict__ in, uint32_t* __restrict__ out) {
  __shared__ uint32_t sums[kThreads];
  const int t = threadIdx.x;
  const int i = blockIdx.x * blockDim.x + t;
  sums[t] = in[i];
  __syncthreads();
  for (int distance = 1; distance < kThreads; distance *= 2) {
    const uint32_t before = t >= distance ? sums[t - distance] : 0;
    planted_barrier();  // without it, sums are overwritten before they are read
    sums[t] += before;
    __syncthreads();
  }
  out[i] = sums[t];
}

using Kernel = void (*)(const uint32_t*, uint32_t*);

// Returns how many schedules gave something else than `expected`.
int wrong(Kernel kernel, int schedules, const std::vector<uint32_t>& in,
          const std::vector<uint32_t>& expected) {
  int found = 0;
  for (int seed = 0; seed < schedules; ++seed) {
    simt::set_seed(seed);
    simt::set_resident(1 + seed % kBlocks);
    std::vector<uint32_t> out(in.size());
    const cudaError_t status = launch(kernel, kBlocks, kThreads, nullptr, in.data(), out.data());
    if (status != cudaSuccess || out != expected) ++found;
  }
  return found;
}

void test(int schedules) {
  std::vector<uint32_t> in(kBlocks * kThreads), total(in.size()), running(in.size());
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<uint32_t>(i * i + 1);
  for (int block = 0; block < kBlocks; ++block) {
    uint32_t sum = 0;
    for (int t = 0; t < kThreads; ++t)
      running[block * kThreads + t] = sum += in[block * kThreads + t];
    for (int t = 0; t < kThreads; ++t) total[block * kThreads + t] = sum;
  }
  std::printf("reduction: %d wrong\n", wrong(reduce, schedules, in, total));
  std::printf("scan: %d wrong\n", wrong(scan, schedules, in, running));
}

}  // namespace
}  // namespace fastunlearn::testing

// Argument: number of schedules.
int main(int, char** arguments) { fastunlearn::testing::test(std::atoi(arguments[1])); }
