// The statistics of a write, gathered by warps.
#ifndef FASTUNLEARN_CUDA_TALLY_CUH_
#define FASTUNLEARN_CUDA_TALLY_CUH_

#include <cstdint>

#include "core/element.h"
#include "core/params.h"
#include "cuda/warp.cuh"

namespace fastunlearn::cuda {

// Adds a sum over the warp to memory; every lane calls it.
__device__ inline void add_warp_sum(unsigned long long x, void* sum) {
  const unsigned long long total = warp_sum(x);
  if (lane_id() == 0 && total != 0) {
    atomicAdd(static_cast<unsigned long long*>(sum), total);
  }
}

// Counts of the tensor that a warp works on; they reach memory when it goes on to the next one.
class WarpTally {
 public:
  // stats: shape (count, kStatColumns), or null; overflow: of the whole call, or null
  __device__ WarpTally(int64_t* stats, unsigned long long* overflow)
      : stats_(stats), overflow_(overflow) {}

  // The next counts belong to this tensor; every lane calls it with the same.
  __device__ void move_to(int tensor) {
    if (tensor == tensor_) return;
    flush();
    tensor_ = tensor;
  }

  __device__ void flush() {
    if (tensor_ < 0) return;
    if (overflow_ != nullptr) add_warp_sum(tally.overflow, overflow_);
    if (stats_ != nullptr) {
      int64_t* const row = stats_ + int64_t{tensor_} * kStatColumns;
      add_warp_sum(selected, row + kStatSelected);
      add_warp_sum(tally.overflow, row + kStatOverflow);
      add_warp_sum(tally.unchanged, row + kStatUnchanged);
    }
    selected = 0;
    tally = {};
  }

  // What the lane has met.
  int64_t selected = 0;
  Tally tally;

 private:
  int64_t* const stats_;
  unsigned long long* const overflow_;
  int tensor_ = -1;
};

}  // namespace fastunlearn::cuda

#endif  // FASTUNLEARN_CUDA_TALLY_CUH_
