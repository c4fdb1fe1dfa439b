// The one read of all scores: a bit for each element above the bracket, and the candidates.
#include <cstdint>

#include "cuda/keys.cuh"
#include "cuda/selection.h"
#include "cuda/tally.cuh"

namespace fastunlearn::cuda {
namespace {

// What one thread has counted for the problem that its block is in.
struct Counts {
  unsigned int above = 0, at_hi = 0, inside = 0, at_lo = 0;
};

// What a block shares while it keeps the candidates of one tile.
struct TileRoom {
  unsigned int before[kWarps];  // candidates in the warps before
  unsigned long long begin;
};

__device__ void add_to(Problem* problem, const Counts& counts) {
  add_warp_sum(counts.above, &problem->above);
  add_warp_sum(counts.at_hi, &problem->at_hi);
  add_warp_sum(counts.inside, &problem->inside);
  add_warp_sum(counts.at_lo, &problem->at_lo);
}

// Takes room for `own` candidates of each thread; returns where those of this thread go. The order
// within a tile follows the warps.
__device__ unsigned long long take_places(const Selection& selection, int64_t tile,
                                          unsigned int own, TileRoom* room) {
  const unsigned int reach = warp_scan(own);
  if (lane_id() == kWarp - 1) room->before[warp_id()] = reach;
  __syncthreads();
  if (threadIdx.x == 0) {
    unsigned int total = 0;
    for (int warp = 0; warp < kWarps; ++warp) {
      const unsigned int found = room->before[warp];
      room->before[warp] = total;
      total += found;
    }
    room->begin =
        atomicAdd(&selection.table.header->candidates, static_cast<unsigned long long>(total));
    selection.runs[tile] = {static_cast<uint32_t>(room->begin), total};
  }
  __syncthreads();
  return room->begin + room->before[warp_id()] + reach - own;
}

__device__ void keep_candidates(const Selection& selection, int64_t tile, const Keys& keys,
                                uint32_t maybe, Bracket bracket, Counts* counts, TileRoom* room) {
  unsigned long long at = take_places(selection, tile, __popc(maybe), room);
  keys.for_each(maybe, [&](int j, uint32_t key) {
    if (at < static_cast<unsigned long long>(selection.capacity)) {
      selection.candidate_key[at] = key;
      selection.candidate_place[at] = static_cast<uint16_t>(keys.place(j));
    }
    ++at;
    const bool at_hi = key == bracket.hi, at_lo = key == bracket.lo;
    counts->at_hi += at_hi;
    counts->at_lo += at_lo && !at_hi;
    counts->inside += !at_lo && !at_hi;
  });
}

__device__ void count_nan(const Selection& selection, int tensor, const Keys& keys) {
  const uint32_t nan = keys.where([](uint32_t key) { return key > kInfinityKey; });
  if (nan == 0) return;
  const auto found = static_cast<unsigned long long>(__popc(nan));
  int64_t* const row = selection.stats + int64_t{tensor} * kStatColumns;
  atomicAdd(reinterpret_cast<unsigned long long*>(row + kStatNan), found);
  atomicAdd(&selection.table.header->nan, found);
}

template <bool kProduct>
__global__ void __launch_bounds__(kThreads, kProduct ? 2 : 4) stream_tiles(Selection selection) {
  __shared__ TileRoom room;
  Counts counts;
  int current = -1;
  Bracket bracket{};
  for_each_tile(selection.table, blockIdx.x, gridDim.x, [&](int64_t number, const Tile& tile) {
    const int problem = selection.problem_of(tile.tensor);
    if (problem != current) {
      if (current >= 0) add_to(selection.problems + current, counts);
      current = problem;
      counts = Counts();
      bracket = selection.problems[problem].bracket;
    }
    const Keys keys = read_keys<kProduct>(selection, tile);
    const bool none = bracket.lo > bracket.hi;
    const uint32_t above = none ? 0 : keys.where([&](uint32_t key) { return key > bracket.hi; });
    const uint32_t maybe =
        keys.where([&](uint32_t key) { return key >= bracket.lo && key <= bracket.hi; });
    keys.write_words(above, selection.bits + number * kTileWords);
    counts.above += __popc(above);
    if (selection.nan == NanRule::kError) count_nan(selection, tile.tensor, keys);
    if (__syncthreads_or(maybe != 0)) {
      keep_candidates(selection, number, keys, maybe, bracket, &counts, &room);
    } else if (threadIdx.x == 0) {
      selection.runs[number] = {0, 0};
    }
  });
  if (current >= 0) add_to(selection.problems + current, counts);
}

}  // namespace

cudaError_t stream(const Selection& selection, const Device& device) {
  const int grid = grid_for(device, selection.table.tiles, 1);
  if (selection.score == ScoreKind::kProduct) {
    return launch(stream_tiles<true>, grid, kThreads, device.stream, selection);
  }
  return launch(stream_tiles<false>, grid, kThreads, device.stream, selection);
}

}  // namespace fastunlearn::cuda
