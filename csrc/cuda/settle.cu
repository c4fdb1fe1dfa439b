// The bitmap of what is selected: the candidates that the cut takes, added to those above the
// bracket.
#include <cstdint>

#include "cuda/keys.cuh"
#include "cuda/selection.h"

namespace fastunlearn::cuda {
namespace {

// Whether an element with such a key is selected.
__device__ bool taken(const Problem& problem, int64_t tile, int place, uint32_t key) {
  if (key != problem.key) return key > problem.key;
  return tile < problem.tie_tile || (tile == problem.tie_tile && place < problem.tie_end);
}

// Adds the candidates of some tiles; the block's warps share the tiles.
__device__ void add_candidates(const Selection& selection, const Problem& problem, int64_t first,
                               int64_t last) {
  for (int64_t tile = first + warp_id(); tile < last; tile += kWarps) {
    const Run run = selection.runs[tile];
    uint32_t* const words = selection.bits + tile * kTileWords;
    for (uint32_t i = lane_id(); i < run.count; i += kWarp) {
      const int place = selection.candidate_place[run.begin + i];
      if (taken(problem, tile, place, selection.candidate_key[run.begin + i])) {
        atomicOr(words + place / 32, 1u << place % 32);
      }
    }
  }
}

// Makes the bits of some tiles anew from all keys.
__device__ void read_again(const Selection& selection, const Problem& problem, int64_t first,
                           int64_t last) {
  for (int64_t number = first; number < last; ++number) {
    const int tensor = tensor_of(selection.table, number);
    const Tile tile = tile_in(selection.table, tensor, number);
    const Tensor& read = selection.table.tensors[tensor];
    uint32_t* const words = selection.bits + number * kTileWords;
    for (int place = threadIdx.x; place < kTile; place += kThreads) {
      const bool found = place < tile.count &&
                         taken(problem, number, place,
                               key_at(read, tile.start + place, selection.score, selection.nan));
      const uint32_t word = __ballot_sync(kAllLanes, found);
      if (lane_id() == 0) words[place / 32] = word;
    }
  }
}

__global__ void __launch_bounds__(kThreads, 4) settle_tiles(Selection selection) {
  for_each_piece(selection, [&](int number, int64_t first, int64_t last) {
    const Problem& problem = selection.problems[number];
    if (selection.table.header->refused != 0) {
      uint32_t* const words = selection.bits + first * kTileWords;
      for (int64_t i = threadIdx.x; i < (last - first) * kTileWords; i += kThreads) words[i] = 0;
    } else if (problem.settled_by_candidates) {
      add_candidates(selection, problem, first, last);
    } else {
      read_again(selection, problem, first, last);
    }
  });
}

// The columns of the statistics that the cut decides, and those of a call refused for NaN.
__global__ void __launch_bounds__(kThreads) tell(Selection selection) {
  const int tensor = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (tensor >= selection.table.count || selection.table.header->nan != 0) return;
  const Problem& problem = selection.problems[selection.problem_of(tensor)];
  int64_t* const row = selection.stats + int64_t{tensor} * kStatColumns;
  row[kStatThreshold] = problem.ties > 0 ? int64_t{problem.key} : -1;
  row[kStatTies] = problem.ties;
  row[kStatTiesTaken] = problem.ties_taken;
}

}  // namespace

cudaError_t settle(const Selection& selection, const Device& device) {
  const int tiles = grid_for(device, selection.table.tiles, 1);
  const cudaError_t status = launch(settle_tiles, tiles, kThreads, device.stream, selection);
  if (status != cudaSuccess) return status;
  const int blocks = (selection.table.count + kThreads - 1) / kThreads;
  return launch(tell, blocks, kThreads, device.stream, selection);
}

}  // namespace fastunlearn::cuda
