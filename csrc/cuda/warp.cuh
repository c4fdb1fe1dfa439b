// Small collectives of a warp, and the search of a histogram.
#ifndef FASTUNLEARN_CUDA_WARP_CUH_
#define FASTUNLEARN_CUDA_WARP_CUH_

#include <cstdint>

#include "cuda/launch.h"
#include "cuda/tuning.h"

namespace fastunlearn::cuda {

inline constexpr unsigned kAllLanes = 0xFFFFFFFFu;

__device__ inline int lane_id() { return threadIdx.x % kWarp; }
__device__ inline int warp_id() { return threadIdx.x / kWarp; }
// Number of this warp in a grid of blocks of kThreads.
__device__ inline int64_t warp_of_grid() { return int64_t{blockIdx.x} * kWarps + warp_id(); }

// Sum over the warp, in all lanes.
template <class T>
__device__ T warp_sum(T value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, distance);
  }
  return value;
}

// Sum of the lanes up to and with this one.
template <class T>
__device__ T warp_scan(T value) {
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const T before = __shfl_up_sync(kAllLanes, value, distance);
    if (lane_id() >= distance) value += before;
  }
  return value;
}

// A bin of a histogram, the number of keys in greater bins, and in it.
struct Bin {
  int number;
  unsigned long long above, count;
};

// The bin that holds the rank-th greatest key, 1 <= rank <= number of keys; for a whole warp.
//   counts: shape (bins,), bins a multiple of 32
template <class Count>
__device__ Bin find_bin(const Count* counts, int bins, unsigned long long rank) {
  const int share = bins / kWarp;
  const int top = bins - 1 - share * lane_id();  // the greatest bin of this lane's share
  unsigned long long own = 0;
  for (int i = 0; i < share; ++i) own += counts[top - i];
  const unsigned long long reach = warp_scan(own);
  const int lane = __ffs(static_cast<int>(__ballot_sync(kAllLanes, reach >= rank))) - 1;
  Bin bin{top, reach - own, 0};
  if (lane_id() == lane) {
    while (bin.above + counts[bin.number] < rank) bin.above += counts[bin.number--];
    bin.count = counts[bin.number];
  }
  bin.number = __shfl_sync(kAllLanes, bin.number, lane);
  bin.above = __shfl_sync(kAllLanes, bin.above, lane);
  bin.count = __shfl_sync(kAllLanes, bin.count, lane);
  return bin;
}

}  // namespace fastunlearn::cuda

#endif  // FASTUNLEARN_CUDA_WARP_CUH_
