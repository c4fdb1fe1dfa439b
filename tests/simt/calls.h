// Calls of the kernels as tests make them, and what they must leave behind.
#ifndef FASTUNLEARN_TESTS_SIMT_CALLS_H_
#define FASTUNLEARN_TESTS_SIMT_CALLS_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "check.h"
#include "cuda/write.h"
#include "requests.h"

namespace fastunlearn::testing {

// Memory of exactly so many bytes, dirty at first.
class Dirty {
 public:
  explicit Dirty(size_t bytes) : data_(new (std::align_val_t{256}) unsigned char[bytes]) {
    std::memset(data_.get(), 0xAB, bytes);
  }
  unsigned char* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(unsigned char* p) const { ::operator delete[](p, std::align_val_t{256}); }
  };
  std::unique_ptr<unsigned char[], Free> data_;
};

// Gives the request's tensors places in ascending order, whole or as rows of something wider.
inline void place_ascending(Draw* draw, bool rows, Request* request) {
  int64_t next = draw->below(3) == 0 ? (int64_t{1} << 33) + 5 : draw->below(10);
  for (Item& item : request->items) {
    const int64_t numel = item.weight.numel();
    const bool cut = rows && draw->below(2) == 0;
    const int64_t row_len =
        cut ? 1 + draw->below(std::min<uint32_t>(numel + 1, 5000)) : std::max<int64_t>(numel, 1);
    item.segment = {next, row_len, row_len + draw->below(5), numel};
    next = item.segment.end() + draw->below(4);
  }
  request->total = next + draw->below(3);
}

inline cuda::Memory device_memory(Tensor* tensor) {
  const TensorView view = tensor->view();
  cuda::Memory out = {view.data(), tensor->dtype, 0, {}, {}};
  if (!view.contiguous()) {
    out.dims = static_cast<int32_t>(tensor->sizes.size());
    std::copy(tensor->sizes.begin(), tensor->sizes.end(), out.size);
    std::copy(tensor->strides.begin(), tensor->strides.end(), out.stride);
  }
  return out;
}

inline cuda::Tensor device_tensor(Item* item, double scale, int64_t k) {
  cuda::Tensor out = {};
  out.weight = device_memory(&item->weight);
  out.score = device_memory(&item->score);
  out.segment = item->segment;
  out.scale = scale;
  out.k = k;
  return out;
}

// Calls body(workspace, bytes): first for the bytes, then with dirty memory of just so many.
template <class Body>
void in_workspace(const Body& body, uint64_t seed) {
  size_t bytes = 0;
  body(nullptr, &bytes);
  const Dirty memory(bytes);
  equal(body(memory.data(), &bytes), cudaSuccess, "status", seed);
}

// A request as the kernels take it.
struct Call {
  Call(Draw* draw, Request* request) : from(request) {
    for (size_t i = 0; i < request->items.size(); ++i) {
      const int64_t k = request->per_tensor ? request->k[i] : 0;
      tensors.push_back(device_tensor(&request->items[i], request->change.scale[i], k));
    }
    const auto& wanted = request->change;
    change = {wanted.noise, wanted.mode, wanted.rounding, wanted.allow_overflow};
    state[0] = static_cast<int64_t>(wanted.rng.seed);
    state[1] = wanted.rng.step;
    rng = {nullptr, wanted.rng};
    if (draw->below(2) == 0) {  // from the device instead
      rng = {state, {}};
      scale = wanted.scale.data();
      for (cuda::Tensor& tensor : tensors) tensor.scale = 1e30;
    }
    device.multiprocessors = 1 + static_cast<int>(draw->below(2));
    stats.assign(tensors.size() * kStatColumns, 0);
    simt::set_seed(draw->word());
  }

  int count() const { return static_cast<int>(tensors.size()); }

  Request* from;
  std::vector<cuda::Tensor> tensors;
  cuda::Change change;
  int64_t state[2];
  cuda::RngSource rng;
  const double* scale = nullptr;
  cuda::Device device = {1, nullptr};
  std::vector<int64_t> stats;
};

inline void expect_outcome(const Call& call, const Outcome& expected, uint64_t seed) {
  for (size_t i = 0; i < call.tensors.size(); ++i) {
    holds(call.from->items[i].weight.memory == expected.memory[i], "weights", seed);
  }
  for (size_t i = 0; i < call.stats.size(); ++i) {
    equal(call.stats[i], expected.stats[i], "statistics", seed);
  }
}

inline void expect_bits(const Call& call, const uint32_t* bits, const Outcome& expected,
                        uint64_t seed) {
  for (size_t i = 0; i < call.tensors.size(); ++i) {
    const auto* const own = reinterpret_cast<const unsigned char*>(
        bits + call.tensors[i].first_tile * cuda::kTileWords);
    const int64_t numel = call.tensors[i].segment.numel;
    Bytes wanted(cuda::tiles_of(numel) * cuda::kTile / 8);  // padding is zero
    std::copy(expected.packed[i].begin(), expected.packed[i].end(), wanted.begin());
    holds(std::equal(wanted.begin(), wanted.end(), own), "bits", seed);
  }
}

// What the kernels make of a call with a given bitmap.
class Written {
 public:
  Written(Call* call, const std::vector<uint32_t>& bits, int64_t selected, int64_t tiles)
      : call_(call), bits_(bits), selected_(selected), tiles_(tiles) {}

  // refused: by whoever made the bitmap; screened: without a journal, whatever its size
  cuda::Header run(bool refused, bool screened) {
    cuda::Workspace counted(nullptr);
    take(&counted, screened);
    const Dirty memory(counted.bytes());
    cuda::Workspace workspace(memory.data());
    const cuda::WriteRoom room = take(&workspace, screened);
    *table_.header = {};
    ok(load_table(call_->tensors.data(), call_->scale, call_->rng, table_, call_->device));
    table_.header->refused = refused;
    ok(write(table_, bits_.data(), call_->change, room, call_->stats.data(), call_->device));
    std::vector<int64_t> counts(call_->stats.size());
    ok(count_selected(table_, bits_.data(), counts.data(), call_->device));
    for (size_t i = 0; i < counts.size(); i += kStatColumns) {
      equal(counts[i], call_->stats[i], "count_selected");
    }
    return *table_.header;
  }

 private:
  static void ok(cudaError_t status) { equal(status, cudaSuccess, "status"); }

  cuda::WriteRoom take(cuda::Workspace* workspace, bool screened) {
    table_ = {workspace->take<cuda::Tensor>(call_->count()), call_->count(), tiles_,
              workspace->take<cuda::Header>(1)};
    const int64_t item = most_item_bytes(call_->tensors.data(), call_->count());
    // Either form of the write, whatever the share.
    if (screened) return {nullptr, nullptr, item, selected_ % 2 == 1};
    return take_write_room(workspace, tiles_, call_->from->numel(), selected_, item, call_->change);
  }

  Call* const call_;
  const std::vector<uint32_t>& bits_;
  const int64_t selected_, tiles_;
  cuda::Table table_;
};

// Draws that have nothing to do with those of the request.
inline Draw draw_beside(uint64_t seed) { return Draw(seed * 7919 + 1000003); }

}  // namespace fastunlearn::testing

#endif  // FASTUNLEARN_TESTS_SIMT_CALLS_H_
