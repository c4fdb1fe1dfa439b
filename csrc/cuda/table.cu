#include <algorithm>

#include "cuda/table.h"

namespace fastunlearn::cuda {
namespace {

// Bytes of arguments that a kernel takes, less some for the others.
#if !defined(CUDART_VERSION) || CUDART_VERSION >= 12010
constexpr int kSliceBytes = 32000;
#else
constexpr int kSliceBytes = 4000;
#endif
constexpr int kSlice = kSliceBytes / static_cast<int>(sizeof(Tensor));

struct Slice {
  Tensor tensor[kSlice];
};

__global__ void load_slice(Slice slice, int first, int count, const double* scale, RngSource rng,
                           Table table) {
  const int i = threadIdx.x;
  if (i < count) {
    table.tensors[first + i] = slice.tensor[i];
    if (scale != nullptr) {
      const double value = scale[first + i];
      table.tensors[first + i].scale = value;
      if (!(value - value == 0)) table.header->refused = 1;  // NaN or infinite
    }
  }
  if (first == 0 && i == 0) table.header->rng = rng.read();
}

}  // namespace

cudaError_t load_table(const Tensor* tensors, const double* scale, const RngSource& rng,
                       const Table& table, const Device& device) {
  int first = 0;
  do {
    Slice slice = {};
    const int count = std::min(kSlice, table.count - first);
    std::copy(tensors + first, tensors + first + count, slice.tensor);
    const cudaError_t status =
        launch(load_slice, 1, kThreads, device.stream, slice, first, count, scale, rng, table);
    if (status != cudaSuccess) return status;
    first += kSlice;
  } while (first < table.count);
  return cudaSuccess;
}

}  // namespace fastunlearn::cuda
