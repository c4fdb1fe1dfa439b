// The selected elements of a tile, listed in shared memory by a block of threads.
#ifndef FASTUNLEARN_CUDA_TILE_LIST_CUH_
#define FASTUNLEARN_CUDA_TILE_LIST_CUH_

#include <cstdint>

#include "cuda/element.cuh"
#include "cuda/warp.cuh"

namespace fastunlearn::cuda {

// The whole block calls `load`, then one of the two that list. The list is whole after the next
// barrier; the barriers of the next `load` keep it until every thread has read it.
struct TileList {
  uint32_t bits[kTileWords];
  int before[kTileWords];  // selected in the words before
  int warp_sum[kTileWords / kWarp];
  uint16_t place[kTile];  // ascending
  uint32_t word[kTile];   // of the noise

  // Takes the bitmap of a tile and returns how many of its elements are selected.
  //   from: shape (kTileWords,)
  __device__ int load(const uint32_t* from) {
    const int t = threadIdx.x;
    const uint32_t own = t < kTileWords ? from[t] : 0;
    const int sum = warp_scan(__popc(own));
    if (t < kTileWords && lane_id() == kWarp - 1) warp_sum[t / kWarp] = sum;
    __syncthreads();
    int total = 0, earlier = 0;
    for (int warp = 0; warp < kTileWords / kWarp; ++warp) {
      if (warp == t / kWarp) earlier = total;
      total += warp_sum[warp];
    }
    if (t < kTileWords) {
      bits[t] = own;
      before[t] = earlier + sum - __popc(own);
    }
    __syncthreads();
    return total;
  }

  // Lists the places.
  __device__ void list_places() {
    const int t = threadIdx.x;
    if (t >= kTileWords) return;
    int rank = before[t];
    for (uint32_t rest = bits[t]; rest != 0; rest &= rest - 1) {
      place[rank++] = static_cast<uint16_t>(32 * t + __ffs(rest) - 1);
    }
  }

  // Lists the places with their words: where many are selected, one Philox block for four elements
  // in a row costs less than one for each.
  //   first: flat index of the tile's first element
  __device__ void list_words(uint64_t first, int count, const Rng& rng) {
    const int skip = static_cast<int>(first & 3);
    for (int i = threadIdx.x; 4 * i < skip + count; i += kThreads) {
      const auto block = noise_block((first >> 2) + static_cast<uint64_t>(i), rng);
      for (int lane = 0; lane < 4; ++lane) {
        const int at = 4 * i - skip + lane;
        if (at < 0 || at >= count) continue;
        const uint32_t own = bits[at / 32], bit = uint32_t{1} << at % 32;
        if ((own & bit) == 0) continue;
        const int rank = before[at / 32] + __popc(own & (bit - 1));
        place[rank] = static_cast<uint16_t>(at);
        word[rank] = block.word[lane];
      }
    }
  }
};

}  // namespace fastunlearn::cuda

#endif  // FASTUNLEARN_CUDA_TILE_LIST_CUH_
