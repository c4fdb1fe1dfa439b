// The exact threshold, from the counts and candidates of the streaming read; where the bracket
// missed or too many keys tie, from all keys.
#include <cstdint>

#include "cuda/keys.cuh"
#include "cuda/selection.h"

namespace fastunlearn::cuda {
namespace {

// Decides what the counts alone can tell, and where to look for the rest.
__device__ void decide(Problem* problem, bool complete, int bin_bits) {
  const auto k = static_cast<unsigned long long>(problem->k);
  const unsigned long long above = problem->above, reach_hi = above + problem->at_hi;
  const unsigned long long reach = reach_hi + problem->inside;
  const bool valid = k > above && k <= reach + problem->at_lo;
  problem->settled_by_candidates = complete && valid;
  problem->search = Search::kFound;
  if (valid && k <= reach_hi) {
    problem->key = problem->bracket.hi;
    problem->ties = static_cast<int64_t>(problem->at_hi);
    problem->ties_taken = static_cast<int64_t>(k - above);
  } else if (valid && k > reach) {
    problem->key = problem->bracket.lo;
    problem->ties = static_cast<int64_t>(problem->at_lo);
    problem->ties_taken = static_cast<int64_t>(k - reach);
  } else if (valid && complete) {
    problem->search = Search::kAmongCandidates;
    problem->range =
        Range::of(problem->bracket.lo + 1, problem->bracket.hi, bin_bits, k - reach_hi);
  } else {
    problem->settled_by_candidates = false;
    problem->search = Search::kAmongAll;
    problem->range = Range::of(0, kMagnitude + 1, bin_bits, k);
  }
}

__global__ void __launch_bounds__(kThreads) decide_problems(Selection selection) {
  Header* const header = selection.table.header;
  const int number = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (number == 0 && header->nan != 0) header->refused = 1;
  if (number >= selection.num_problems) return;
  Problem* const problem = selection.problems + number;
  const bool complete = header->candidates <= static_cast<unsigned long long>(selection.capacity);
  problem->tie_tile = problem->last_tile;
  if (problem->k > 0) {
    decide(problem, complete, selection.bin_bits);
  } else {
    problem->search = Search::kFound;
    problem->settled_by_candidates = true;
  }
}

// Calls body(key) for every candidate of some tiles; the block's warps share the tiles.
template <class Body>
__device__ void for_each_candidate(const Selection& selection, int64_t first, int64_t last,
                                   const Body& body) {
  for (int64_t tile = first + warp_id(); tile < last; tile += kWarps) {
    const Run run = selection.runs[tile];
    for (uint32_t i = lane_id(); i < run.count; i += kWarp) {
      body(selection.candidate_key[run.begin + i]);
    }
  }
}

// The same for every element of the tiles.
template <class Body>
__device__ void for_each_element(const Selection& selection, int64_t first, int64_t last,
                                 const Body& body) {
  for (int64_t number = first; number < last; ++number) {
    const int tensor = tensor_of(selection.table, number);
    for_each_key(selection, tile_in(selection.table, tensor, number),
                 [&](int, uint32_t key) { body(key); });
  }
}

// Adds the keys in the range of each problem to its histogram.
__global__ void __launch_bounds__(kThreads) count_bins(Selection selection) {
  __shared__ unsigned int bins[1 << kBinBits];
  const int num_bins = static_cast<int>(selection.bins());
  for_each_piece(selection, [&](int number, int64_t first, int64_t last) {
    const Problem& problem = selection.problems[number];
    if (problem.search == Search::kFound) return;
    for (int i = threadIdx.x; i < num_bins; i += kThreads) bins[i] = 0;
    __syncthreads();
    const Range range = problem.range;
    const auto count = [&](uint32_t key) {
      if (range.has(key)) atomicAdd(&bins[range.bin_of(key)], 1u);
    };
    if (problem.search == Search::kAmongCandidates) {
      for_each_candidate(selection, first, last, count);
    } else {
      for_each_element(selection, first, last, count);
    }
    __syncthreads();
    unsigned long long* const histogram = selection.histogram + number * selection.bins();
    for (int i = threadIdx.x; i < num_bins; i += kThreads) {
      if (bins[i] != 0) atomicAdd(histogram + i, static_cast<unsigned long long>(bins[i]));
    }
    // No barrier: for the next piece, each thread clears the bins that it has read.
  });
}

// Narrows the range of each problem to one bin and clears the histogram for the next level.
__global__ void __launch_bounds__(kThreads) pick_bins(Selection selection) {
  const int num_bins = static_cast<int>(selection.bins());
  for (int number = blockIdx.x; number < selection.num_problems; number += gridDim.x) {
    Problem* const problem = selection.problems + number;
    if (problem->search == Search::kFound) continue;
    unsigned long long* const histogram = selection.histogram + number * selection.bins();
    Bin bin{};
    if (warp_id() == 0) bin = find_bin(histogram, num_bins, problem->range.rank);
    __syncthreads();
    for (int i = threadIdx.x; i < num_bins; i += kThreads) histogram[i] = 0;
    if (threadIdx.x != 0) continue;
    problem->range.narrow(bin.number, bin.above);
    if (problem->range.single()) {
      problem->search = Search::kFound;
      problem->key = problem->range.low;
      problem->ties = static_cast<int64_t>(bin.count);
      problem->ties_taken = static_cast<int64_t>(problem->range.rank);
    }
  }
}

__device__ bool ties_are_cut(const Problem& problem) { return problem.ties_taken < problem.ties; }

// The places of a tile whose key is the threshold, as bits; for a whole block.
//   words: shape (kTileWords,), shared
__device__ void mark_ties(const Selection& selection, const Problem& problem, int64_t number,
                          uint32_t* words) {
  for (int i = threadIdx.x; i < kTileWords; i += kThreads) words[i] = 0;
  __syncthreads();
  if (problem.settled_by_candidates) {
    const Run run = selection.runs[number];
    for (uint32_t i = threadIdx.x; i < run.count; i += kThreads) {
      const int place = selection.candidate_place[run.begin + i];
      if (selection.candidate_key[run.begin + i] == problem.key) {
        atomicOr(words + place / 32, 1u << place % 32);
      }
    }
  } else {
    const int tensor = tensor_of(selection.table, number);
    for_each_key(selection, tile_in(selection.table, tensor, number), [&](int place, uint32_t key) {
      if (key == problem.key) atomicOr(words + place / 32, 1u << place % 32);
    });
  }
  __syncthreads();
}

// Counts the ties of each tile, where some of a problem's ties are left out.
__global__ void __launch_bounds__(kThreads, 4) count_ties(Selection selection) {
  __shared__ uint32_t words[kTileWords];
  for_each_piece(selection, [&](int number, int64_t first, int64_t last) {
    const Problem& problem = selection.problems[number];
    if (!ties_are_cut(problem)) return;
    if (problem.settled_by_candidates) {
      for (int64_t tile = first + warp_id(); tile < last; tile += kWarps) {
        const Run run = selection.runs[tile];
        unsigned int found = 0;
        for (uint32_t i = lane_id(); i < run.count; i += kWarp) {
          found += selection.candidate_key[run.begin + i] == problem.key;
        }
        found = warp_sum(found);
        if (lane_id() == 0) selection.tile_ties[tile] = found;
      }
      return;
    }
    for (int64_t tile = first; tile < last; ++tile) {
      mark_ties(selection, problem, tile, words);
      if (warp_id() == 0) {
        unsigned int found = 0;
        for (int i = lane_id(); i < kTileWords; i += kWarp) found += __popc(words[i]);
        found = warp_sum(found);
        if (lane_id() == 0) selection.tile_ties[tile] = found;
      }
      __syncthreads();
    }
  });
}

// Place of the rank-th set bit.
//   words: shape (kTileWords,)
__device__ int place_of_bit(const uint32_t* words, int64_t rank) {
  int word = 0;
  while (rank > __popc(words[word])) rank -= __popc(words[word++]);
  uint32_t bits = words[word];
  while (--rank > 0) bits &= bits - 1;
  return 32 * word + __ffs(static_cast<int>(bits)) - 1;
}

// What a block shares while it looks for the last tie.
struct TieRoom {
  int64_t before[kThreads];  // ties in the tiles of each thread
  int64_t tile, rank;
  uint32_t words[kTileWords];
};

// Finds the tile that holds the last tie that is taken, and its rank there.
__device__ void find_tie_tile(const Selection& selection, const Problem& problem, TieRoom* room) {
  const int64_t tiles = problem.last_tile - problem.first_tile;
  const int64_t first = problem.first_tile + tiles * threadIdx.x / kThreads;
  const int64_t last = problem.first_tile + tiles * (threadIdx.x + 1) / kThreads;
  int64_t own = 0;
  for (int64_t tile = first; tile < last; ++tile) own += selection.tile_ties[tile];
  room->before[threadIdx.x] = own;
  __syncthreads();
  int64_t before = 0;
  for (int i = 0; i < static_cast<int>(threadIdx.x); ++i) before += room->before[i];
  if (before < problem.ties_taken && problem.ties_taken <= before + own) {
    int64_t tile = first;
    while (before + selection.tile_ties[tile] < problem.ties_taken) {
      before += selection.tile_ties[tile++];
    }
    room->tile = tile;
    room->rank = problem.ties_taken - before;
  }
  __syncthreads();
}

// Finds where the ties that are taken end: lowest flat index first.
__global__ void __launch_bounds__(kThreads, 4) cut_ties(Selection selection) {
  __shared__ TieRoom room;
  for (int number = blockIdx.x; number < selection.num_problems; number += gridDim.x) {
    Problem* const problem = selection.problems + number;
    if (!ties_are_cut(*problem)) continue;
    find_tie_tile(selection, *problem, &room);
    mark_ties(selection, *problem, room.tile, room.words);
    if (threadIdx.x == 0) {
      problem->tie_tile = room.tile;
      problem->tie_end = place_of_bit(room.words, room.rank) + 1;
    }
    // No barrier: what thread 0 reads is written behind the first one of find_tie_tile.
  }
}

}  // namespace

cudaError_t find_cuts(const Selection& selection, const Device& device) {
  const int blocks = (selection.num_problems + kThreads - 1) / kThreads;
  const int tiles = grid_for(device, selection.table.tiles, 1);
  const int problems = grid_for(device, selection.num_problems, 1);
  cudaError_t status = launch(decide_problems, blocks, kThreads, device.stream, selection);
  for (int level = 0; level < selection.levels() && status == cudaSuccess; ++level) {
    status = launch(count_bins, tiles, kThreads, device.stream, selection);
    if (status != cudaSuccess) return status;
    status = launch(pick_bins, problems, kThreads, device.stream, selection);
  }
  if (status != cudaSuccess) return status;
  status = launch(count_ties, tiles, kThreads, device.stream, selection);
  if (status != cudaSuccess) return status;
  return launch(cut_ties, problems, kThreads, device.stream, selection);
}

}  // namespace fastunlearn::cuda
