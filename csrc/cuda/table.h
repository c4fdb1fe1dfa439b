// What the kernels know of a call: its tensors, and where their elements lie.
#ifndef FASTUNLEARN_CUDA_TABLE_H_
#define FASTUNLEARN_CUDA_TABLE_H_

#include <cstdint>

#include "core/half.h"
#include "core/params.h"
#include "core/philox.h"
#include "core/platform.h"
#include "core/segment.h"
#include "cuda/launch.h"
#include "cuda/tuning.h"

namespace fastunlearn::cuda {

inline constexpr int kMaxDims = 4;

// Memory of a tensor of any strides, seen in logical row-major order. One that is not contiguous
// has fewer than 2^32 elements: 64-bit divisions would be calls.
struct Memory {
  void* data;
  DType dtype;
  int32_t dims;              // 0 where contiguous
  uint32_t size[kMaxDims];   // outermost first; neighbours that step alike are merged
  int64_t stride[kMaxDims];  // in elements

  // Distance in elements from the first element to element `local`.
  FASTUNLEARN_HD int64_t offset(int64_t local) const {
    if (dims == 0) return local;
    auto left = static_cast<uint32_t>(local);
    int64_t out = 0;
#ifdef __CUDA_ARCH__
#pragma unroll 1  // rarely taken, and in the middle of code that is unrolled
#endif
    for (int d = dims - 1; d > 0; --d) {
      const uint32_t outer = left / size[d];
      out += (left - outer * size[d]) * stride[d];
      left = outer;
    }
    return out + left * stride[0];
  }
};

// One tensor. The tensors of a call ascend: each begins in the flat index space where the one
// before has ended, or later, so that walking them walks the flat indices in order.
struct Tensor {
  Memory weight;
  Memory score;  // Random-k: unused
  Segment segment;
  double scale;           // of its noise
  int64_t k;              // under the scope "tensor": how many of it are selected
  int64_t first_tile;     // tiles of the tensors before it
  int64_t first_element;  // elements of the tensors before it
  int64_t first_sample;   // under the scope "tensor": keys sampled, or images drawn, before it
};

inline int64_t item_bytes(DType dtype) {
  if (dtype == DType::kFloat64) return 8;
  return dtype == DType::kFloat32 ? 4 : 2;
}

inline int64_t tiles_of(int64_t numel) { return (numel + kTile - 1) / kTile; }

// Numbers the tiles and elements of all tensors and returns how many tiles there are.
//   tensors: shape (count,), on the host
inline int64_t number_tiles(Tensor* tensors, int count) {
  int64_t tiles = 0, elements = 0;
  for (int i = 0; i < count; ++i) {
    tensors[i].first_tile = tiles;
    tensors[i].first_element = elements;
    tiles += tiles_of(tensors[i].segment.numel);
    elements += tensors[i].segment.numel;
  }
  return tiles;
}

// What the device knows of the whole call. Zero before the first kernel.
struct Header {
  Rng rng;
  unsigned long long candidates;  // found so far, kept or not
  unsigned long long journaled;   // old values kept so far
  unsigned long long nan;         // NaN scores met, where they are refused
  unsigned long long overflow;    // finite weights whose new value is not finite
  unsigned int suspicious;        // some weight is so large that noise might make it overflow
  unsigned int refused;           // the call must not change anything
};

// Tensors on the device, as every kernel gets them.
struct Table {
  Tensor* tensors;  // shape (count,)
  int count;
  int64_t tiles;
  Header* header;
};

// Where random numbers come from: device memory, so that a captured graph can be replayed with
// other values, or the host.
struct RngSource {
  const int64_t* device;  // seed and step, shape (2,), or null
  Rng value;

  __device__ Rng read() const {
    if (device == nullptr) return value;
    return {static_cast<uint64_t>(device[0]), static_cast<uint32_t>(device[1])};
  }
};

// Where a call runs.
struct Device {
  int multiprocessors;
  cudaStream_t stream;
};

// A piece of a tensor, all in one tile.
struct Tile {
  int tensor;
  int64_t start;  // local number of its first element
  int count;      // at most kTile
};

// The last of `count` items that begins at `at` or before, or -1; begin(i) ascends.
template <class Begin>
__device__ int last_begun(int count, int64_t at, const Begin& begin) {
  int low = -1, high = count;
  while (high - low > 1) {
    const int middle = low + (high - low) / 2;
    if (begin(middle) <= at) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// The tensor that a tile belongs to.
__device__ inline int tensor_of(const Table& table, int64_t tile) {
  return last_begun(table.count, tile, [&](int i) { return table.tensors[i].first_tile; });
}

__device__ inline Tile tile_in(const Table& table, int tensor, int64_t tile) {
  const Tensor& found = table.tensors[tensor];
  const int64_t start = (tile - found.first_tile) * kTile;
  const int64_t left = found.segment.numel - start;
  return {tensor, start, static_cast<int>(left < kTile ? left : kTile)};
}

// Calls body(number, tile) for the consecutive tiles that are the share of one of `workers`; the
// tensor is searched for once.
template <class Body>
__device__ void for_each_tile(const Table& table, int64_t worker, int64_t workers,
                              const Body& body) {
  const int64_t first = table.tiles * worker / workers;
  const int64_t last = table.tiles * (worker + 1) / workers;
  if (first == last) return;
  int tensor = tensor_of(table, first);
  for (int64_t number = first; number < last; ++number) {
    while (tensor + 1 < table.count && table.tensors[tensor + 1].first_tile <= number) ++tensor;
    body(number, tile_in(table, tensor, number));
  }
}

// Calls body(T*) with a null pointer of the storage type.
template <class Body>
__device__ inline auto dispatch(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kFloat64:
      return body(static_cast<double*>(nullptr));
    case DType::kBFloat16:
      return body(static_cast<BFloat16*>(nullptr));
    case DType::kFloat16:
      return body(static_cast<Float16*>(nullptr));
    case DType::kFloat32:
      break;
  }
  return body(static_cast<float*>(nullptr));
}

// Blocks of a grid that walks `items` with `each` of them to a block.
inline int grid_for(const Device& device, int64_t items, int64_t each) {
  const int64_t wanted = (items + each - 1) / each;
  const int64_t most = int64_t{device.multiprocessors} * kBlocksPerMultiprocessor;
  return static_cast<int>(wanted < 1 ? 1 : wanted < most ? wanted : most);
}

// Copies the tensors and the random state to the device, in kernel arguments: no host memory is
// read after the call returns, and a captured graph holds its own copy.
//   tensors: shape (count,), on the host
//   scale: shape (count,), on the device, or null: as the tensors have it; where one is not finite,
//     the call is refused
cudaError_t load_table(const Tensor* tensors, const double* scale, const RngSource& rng,
                       const Table& table, const Device& device);

}  // namespace fastunlearn::cuda

#endif  // FASTUNLEARN_CUDA_TABLE_H_
