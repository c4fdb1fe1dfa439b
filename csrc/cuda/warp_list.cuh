// The selected elements of a tile, listed in shared memory by one warp.
#ifndef FASTUNLEARN_CUDA_WARP_LIST_CUH_
#define FASTUNLEARN_CUDA_WARP_LIST_CUH_

#include <cstdint>

#include "cuda/element.cuh"
#include "cuda/warp.cuh"

namespace fastunlearn::cuda {

// Elements of a group: a list holds all of one, or all the selected of a tile, if they are no more.
inline constexpr int kGroup = 512;
inline constexpr int kGroups = kTile / kGroup;
inline constexpr int kGroupWords = kGroup / 32;

// Four words of a tile's bitmap in each lane, and how many elements they select.
struct TileBits {
  uint4 own;
  int before, total;  // in the lanes before, in the tile

  // words: shape (kTileWords,)
  static __device__ TileBits load(const uint32_t* words) {
    TileBits bits{reinterpret_cast<const uint4*>(words)[lane_id()], 0, 0};
    const int count =
        __popc(bits.own.x) + __popc(bits.own.y) + __popc(bits.own.z) + __popc(bits.own.w);
    const int reach = warp_scan(count);
    bits.before = reach - count;
    bits.total = __shfl_sync(kAllLanes, reach, kWarp - 1);
    return bits;
  }

  // Elements selected before a group; kGroups: in all.
  __device__ int before_group(int group) const {
    const int lane = group * (kGroupWords / 4);
    const int found = __shfl_sync(kAllLanes, before, lane % kWarp);
    return group == kGroups ? total : found;
  }
};

// A list that one warp makes and reads; each function is for the whole warp, and the list is whole
// when it returns.
struct WarpList {
  uint16_t place[kGroup];  // in the tile, ascending
  uint32_t word[kGroup];   // of the noise
  uint32_t bits[kGroupWords];
  int before[kGroupWords];

  // All of a tile, in which at most kGroup elements are selected.
  __device__ void list_tile(const TileBits& tile) {
    __syncwarp();  // orders memory alone: the list before has been read
    const uint32_t own[4] = {tile.own.x, tile.own.y, tile.own.z, tile.own.w};
    int rank = tile.before;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int first = 128 * lane_id() + 32 * i;
      for (uint32_t rest = own[i]; rest != 0; rest &= rest - 1) {
        place[rank++] = static_cast<uint16_t>(first + __ffs(static_cast<int>(rest)) - 1);
      }
    }
    __syncwarp();
  }

  // One group.
  __device__ void list_group(const TileBits& tile, int group) {
    take_group(tile, group);
    for (int i = lane_id(); i < kGroup; i += kWarp) {
      const int rank = rank_of(i);
      if (rank >= 0) place[rank] = static_cast<uint16_t>(group * kGroup + i);
    }
    __syncwarp();
  }

  // One group with its words: one Philox block for four elements in a row costs less than one for
  // each, where many are selected.
  //   first: flat index of the group's first element; count: elements of the group
  __device__ void list_words(const TileBits& tile, int group, uint64_t first, int count,
                             const Rng& rng) {
    take_group(tile, group);
    const int skip = static_cast<int>(first & 3);
    for (int i = lane_id(); 4 * i < skip + count; i += kWarp) {
      const auto block = word_block((first >> 2) + static_cast<uint64_t>(i), kStreamNoise, rng);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int at = 4 * i - skip + j;
        const int rank = at >= 0 && at < count ? rank_of(at) : -1;
        if (rank < 0) continue;
        place[rank] = static_cast<uint16_t>(group * kGroup + at);
        word[rank] = block.word[j];
      }
    }
    __syncwarp();
  }

 private:
  // The bitmap of a group, from the lanes that have it.
  __device__ void take_group(const TileBits& tile, int group) {
    constexpr int kLanes = kGroupWords / 4;
    __syncwarp();  // orders memory alone: the list before has been read
    const int start = tile.before_group(group);
    const int own = lane_id() - group * kLanes;
    if (own >= 0 && own < kLanes) {
      const uint32_t words[4] = {tile.own.x, tile.own.y, tile.own.z, tile.own.w};
      int reach = tile.before - start;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        bits[4 * own + i] = words[i];
        before[4 * own + i] = reach;
        reach += __popc(words[i]);
      }
    }
    __syncwarp();
  }

  // Number of an element of the group among the selected, or -1.
  __device__ int rank_of(int at) const {
    const uint32_t own = bits[at / 32], bit = uint32_t{1} << at % 32;
    return (own & bit) == 0 ? -1 : before[at / 32] + __popc(own & (bit - 1));
  }
};

}  // namespace fastunlearn::cuda

#endif  // FASTUNLEARN_CUDA_WARP_LIST_CUH_
