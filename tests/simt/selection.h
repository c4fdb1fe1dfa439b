// One selection on the harness: each array in memory of its own, and the way that was taken.
#ifndef FASTUNLEARN_TESTS_SIMT_SELECTION_H_
#define FASTUNLEARN_TESTS_SIMT_SELECTION_H_

#include <algorithm>
#include <cstdint>
#include <deque>
#include <numeric>
#include <vector>

#include "calls.h"
#include "cuda/sample.h"
#include "cuda/selection.h"
#include "cuda/topk.h"

namespace fastunlearn::testing {

// How a selection comes to its cut.
struct Way {
  bool searched;   // for the threshold, which lies between the ends of the bracket or outside
  bool reread;     // the bits are made from all keys, not from the candidates
  bool overflown;  // there were more candidates than room
  bool missed;     // the bracket does not hold the threshold
};

// The stages of one selection, each array in memory of exactly its size, so that a sanitizer sees
// its ends.
class Stages {
 public:
  // tensors: those of the request, in ascending order
  Stages(const Request& request, std::vector<cuda::Tensor>* tensors) : tensors_(tensors) {
    const int count = static_cast<int>(tensors->size());
    size(request);
    own.table = {take<cuda::Tensor>(count), count, cuda::number_tiles(tensors->data(), count),
                 take<cuda::Header>(1)};
    const int64_t tiles = own.table.tiles;
    own.per_tensor = request.per_tensor;
    own.num_problems = own.per_tensor ? count : 1;
    own.problems = take<cuda::Problem>(own.num_problems);
    own.k = request.per_tensor ? -1 : request.k[0];
    own.elements = request.numel();
    own.score = request.score;
    own.nan = request.nan;
    own.sample = take<uint32_t>(own.num_samples);
    own.bits = take<uint32_t>(tiles * cuda::kTileWords);
    own.runs = take<cuda::Run>(tiles);
    own.candidate_key = take<uint32_t>(own.capacity);
    own.candidate_place = take<uint16_t>(own.capacity);
    own.bin_bits = own.per_tensor ? cuda::kTensorBinBits : cuda::kBinBits;
    own.histogram = take<unsigned long long>(own.num_problems * own.bins());
    own.tile_ties = take<uint32_t>(tiles);
    own.stats = take<int64_t>(count * kStatColumns);
  }

  void run(const cuda::Device& device) {
    *own.table.header = {};
    std::fill_n(own.histogram, own.num_problems * own.bins(), 0);
    std::fill_n(own.stats, own.table.count * kStatColumns, 0);
    cudaError_t status = load_table(tensors_->data(), nullptr, {}, own.table, device);
    for (const auto stage : {cuda::find_brackets, cuda::stream, cuda::find_cuts, cuda::settle}) {
      if (status == cudaSuccess) status = stage(own, device);
    }
    equal(status, cudaSuccess, "status");
  }

  Way way(int number) const {
    const cuda::Problem& problem = own.problems[number];
    const auto k = static_cast<unsigned long long>(problem.k);
    const auto reach = problem.above + problem.at_hi + problem.inside + problem.at_lo;
    const auto room = static_cast<unsigned long long>(own.capacity);
    return {problem.range.bin_bits != 0, !problem.settled_by_candidates,
            own.table.header->candidates > room, k != 0 && (k <= problem.above || k > reach)};
  }

  cuda::Selection own = {};

 private:
  template <class T>
  T* take(int64_t count) {
    return reinterpret_cast<T*>(memory_.emplace_back(count * sizeof(T)).data());
  }

  // Samples and candidates, as topk.cu counts them.
  void size(const Request& request) {
    bool coarse = false;
    for (size_t i = 0; i < tensors_->size(); ++i) {
      const bool half = item_bytes(request.items[i].score.dtype) == 2;
      (*tensors_)[i].first_sample = own.num_samples;
      if (request.per_tensor) add(request.items[i].weight.numel(), request.k[i], half);
      coarse = coarse || half;
    }
    if (!request.per_tensor) add(request.numel(), request.k[0], coarse);
  }

  void add(int64_t numel, int64_t k, bool coarse) {
    const int64_t samples = cuda::sample_size(numel, k);
    own.num_samples += samples;
    own.capacity += cuda::candidate_room(numel, k, samples, coarse);
  }

  std::vector<cuda::Tensor>* const tensors_;
  std::deque<Dirty> memory_;
};

inline cuda::TopK topk_of(const Request& request, Call* call) {
  const int64_t k = request.per_tensor ? -1 : request.k[0];
  return {call->tensors.data(), call->count(), k, request.per_tensor, request.score, request.nan};
}

// The whole call, from the table to the weights.
inline void perturb(const Request& request, Call* call, uint64_t seed) {
  const cuda::TopK topk = topk_of(request, call);
  in_workspace(
      [&](void* workspace, size_t* bytes) {
        return topk_perturb(topk, call->change, call->scale, call->rng, workspace, bytes,
                            call->stats.data(), call->device);
      },
      seed);
}

// Contiguous tensors of one dtype for given values in flat order; the weights are zero.
template <class T>
Request plain_request(const std::vector<T>& values, DType dtype, const std::vector<int64_t>& numels,
                      const std::vector<int64_t>& k) {
  Request request;
  int64_t begin = 0;
  for (const int64_t numel : numels) {
    Item item;
    item.weight = {DType::kBFloat16, {numel}, {1}, Bytes(numel * 2)};
    item.score = {dtype, {numel}, {1}, Bytes(numel * sizeof(T))};
    if (numel > 0) {
      std::memcpy(item.score.memory.data(), values.data() + begin, item.score.memory.size());
    }
    item.segment = {begin, std::max<int64_t>(numel, 1), std::max<int64_t>(numel, 1), numel};
    request.items.push_back(item);
    begin += numel;
  }
  equal(begin, values.size(), "sizes");
  request.k = k;
  request.per_tensor = k.size() > 1;
  request.total = begin;
  request.change = {std::vector<double>(numels.size(), 0.1),
                    {1, 2},
                    NoiseKind::kNormal,
                    UpdateMode::kAdd,
                    Rounding::kNearest,
                    false};
  return request;
}

// Ranks [begin, end) that tie.
struct Ties {
  int64_t begin, end;
};

// The value of a rank, rank 0 the greatest: distinct in fp32 and fp64, 512 alike in 16 bits.
template <class T>
T of_rank(int64_t rank) {
  if constexpr (sizeof(T) == 2) {
    return {static_cast<uint16_t>(0x4000 - rank / 512)};
  } else {
    return ScalarLanes::from_bits(0x40000000u - static_cast<uint32_t>(rank));
  }
}

// Values at random places.
template <class T>
std::vector<T> with_ties(int64_t count, Ties ties) {
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  Draw draw(count);
  for (int64_t n = count; n > 1; --n) std::swap(order[n - 1], order[draw.below(n)]);
  std::vector<T> values(count);
  for (int64_t rank = 0; rank < count; ++rank) {
    const bool tied = rank >= ties.begin && rank < ties.end;
    values[order[rank]] = of_rank<T>(tied ? ties.begin : rank);
  }
  return values;
}

}  // namespace fastunlearn::testing

#endif  // FASTUNLEARN_TESTS_SIMT_SELECTION_H_
