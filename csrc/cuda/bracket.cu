// Two bounds around each threshold, from a sample of the keys.
#include <cstdint>

#include "cuda/keys.cuh"
#include "cuda/sample.h"
#include "cuda/selection.h"

namespace fastunlearn::cuda {
namespace {

constexpr int kBracketThreads = 1024;
constexpr int kBins = 1 << kBinBits;

__global__ void describe_problems(Selection selection) {
  const int number = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (number >= selection.num_problems) return;
  const Table& table = selection.table;
  Problem problem{};
  if (selection.per_tensor) {
    const Tensor& tensor = table.tensors[number];
    const bool last = number + 1 == table.count;
    problem.k = tensor.k;
    problem.numel = tensor.segment.numel;
    problem.first_tile = tensor.first_tile;
    problem.last_tile = last ? table.tiles : table.tensors[number + 1].first_tile;
    problem.first_sample = tensor.first_sample;
    problem.samples = (last ? selection.num_samples : table.tensors[number + 1].first_sample) -
                      tensor.first_sample;
  } else {
    problem.k = selection.k;
    problem.numel = selection.elements;
    problem.last_tile = table.tiles;
    problem.samples = selection.num_samples;
  }
  selection.problems[number] = problem;
}

// The tensor that holds element `place` of all elements in a row.
__device__ int tensor_with(const Table& table, int64_t place) {
  return last_begun(table.count, place, [&](int i) { return table.tensors[i].first_element; });
}

// The problem that sample `i` belongs to.
__device__ int problem_with(const Selection& selection, int64_t i) {
  return last_begun(selection.num_problems, i,
                    [&](int number) { return selection.problems[number].first_sample; });
}

// Keys at one position in each of `samples` equal strata; see csrc/cpu/bracket.cpp.
__global__ void __launch_bounds__(kThreads) draw_sample(Selection selection) {
  const PhiloxKeys<ScalarLanes> keys(0);
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < selection.num_samples;
       i += step) {
    const int number = problem_with(selection, i);
    const Problem& problem = selection.problems[number];
    const int64_t own = i - problem.first_sample;
    const int64_t width = problem.numel / problem.samples;
    const auto block = static_cast<uint32_t>(own / 4);
    const uint32_t word = philox_block<ScalarLanes>(block, 0, kStreamSample, 0, keys).word[own % 4];
    const int64_t place = width * own + problem.numel % problem.samples * own / problem.samples +
                          static_cast<int64_t>(static_cast<uint64_t>(word) * width >> 32);
    const Table& table = selection.table;
    const int tensor = selection.per_tensor ? number : tensor_with(table, place);
    const int64_t local =
        selection.per_tensor ? place : place - table.tensors[tensor].first_element;
    selection.sample[i] = key_at(table.tensors[tensor], local, selection.score, selection.nan);
  }
}

// The ranks of the two bounds among the sample, 0 where there is no such key. The share of the
// sample above the threshold leaves them with odds of exp(-kLogInverseMiss) (Bernstein's bound).
__device__ void ranks_of(const Problem& problem, unsigned long long (&rank)[2]) {
  const double share = static_cast<double>(problem.k) / static_cast<double>(problem.numel);
  const auto size = static_cast<double>(problem.samples);
  const double expected = share * size;
  const double spread = spread_of(expected, share);
  const double above = ::floor(expected - spread), reach = ::ceil(expected + spread);
  rank[0] = above >= 1 ? static_cast<unsigned long long>(above) : 0;
  rank[1] = reach <= size ? static_cast<unsigned long long>(reach) : 0;
}

// Room of a block that finds two order statistics of a sample.
struct Bounds {
  Range range[2];
  uint32_t bins[2][kBins];
};

// One histogram for both; for a whole block.
//   sample: shape (count,)
__device__ void narrow_bounds(const uint32_t* sample, int64_t count, Bounds* bounds) {
  for (int i = threadIdx.x; i < 2 * kBins; i += blockDim.x) bounds->bins[i / kBins][i % kBins] = 0;
  __syncthreads();
  const Range range[2] = {bounds->range[0], bounds->range[1]};
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
    const uint32_t key = sample[i];
    for (int s = 0; s < 2; ++s) {
      if (range[s].has(key)) atomicAdd(&bounds->bins[s][range[s].bin_of(key)], 1u);
    }
  }
  __syncthreads();
  const int s = warp_id();
  if (s < 2 && range[s].rank > 0) {
    const Bin bin = find_bin(bounds->bins[s], kBins, range[s].rank);
    if (lane_id() == 0) bounds->range[s].narrow(bin.number, bin.above);
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kBracketThreads) find_bounds(Selection selection) {
  __shared__ Bounds bounds;
  for (int number = blockIdx.x; number < selection.num_problems; number += gridDim.x) {
    Problem& problem = selection.problems[number];
    if (problem.k == 0) {
      if (threadIdx.x == 0) problem.bracket = {1, 0};
      continue;
    }
    if (threadIdx.x == 0) {
      unsigned long long rank[2] = {0, 0};
      if (problem.samples > 0) ranks_of(problem, rank);
      for (int s = 0; s < 2; ++s) bounds.range[s] = Range::of(0, kMagnitude + 1, kBinBits, rank[s]);
    }
    __syncthreads();
    const uint32_t* const sample = selection.sample + problem.first_sample;
    for (int level = 0; level * kBinBits < kKeyBits; ++level) {
      if (bounds.range[0].rank + bounds.range[1].rank == 0) break;
      narrow_bounds(sample, problem.samples, &bounds);
    }
    if (threadIdx.x == 0) {
      problem.bracket.hi = bounds.range[0].rank > 0 ? bounds.range[0].low : kMagnitude;
      problem.bracket.lo = bounds.range[1].rank > 0 ? bounds.range[1].low : 0;
    }
    __syncthreads();
  }
}

}  // namespace

cudaError_t find_brackets(const Selection& selection, const Device& device) {
  const int blocks = (selection.num_problems + kThreads - 1) / kThreads;
  cudaError_t status = launch(describe_problems, blocks, kThreads, device.stream, selection);
  if (status == cudaSuccess && selection.num_samples > 0) {
    const int grid = grid_for(device, selection.num_samples, kThreads);
    status = launch(draw_sample, grid, kThreads, device.stream, selection);
  }
  if (status != cudaSuccess) return status;
  const int grid = grid_for(device, selection.num_problems, 1);
  return launch(find_bounds, grid, kBracketThreads, device.stream, selection);
}

}  // namespace fastunlearn::cuda
