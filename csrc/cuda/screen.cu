#include <type_traits>

#include "core/keys.h"
#include "cuda/element.cuh"
#include "cuda/screen.h"

namespace fastunlearn::cuda {
namespace {

// Half of the greatest finite value where the noise stays below the other half, else 0, also for a
// scale that is NaN; magnitudes below it cannot overflow.
__device__ uint32_t limit_of(const Tensor& tensor) {
  constexpr double kMostNoise = 16;  // beyond every distribution of 32-bit words
  const double greatest = tensor.weight.dtype == DType::kFloat16 ? 65504 : 3.38e38;
  const double most = greatest / 2 / kMostNoise;
  if (!(tensor.scale < most && tensor.scale > -most)) return 0;
  return ScalarLanes::bits(static_cast<float>(greatest / 2));
}

// The greatest key of a thread's share of the selected elements; -1 where it has none.
template <class T>
__device__ int32_t greatest_key(const Memory& memory, const Tile& tile, const uint32_t* bits) {
  const Elements<T> weights(memory);
  int32_t greatest = -1;
#pragma unroll 4
  for (int i = threadIdx.x; i < tile.count; i += kThreads) {
    if ((bits[i / 32] >> i % 32 & 1) == 0) continue;
    const uint32_t key = key_of(to_float32(weights[tile.start + i]), NanRule::kError);
    greatest = static_cast<int32_t>(key) > greatest ? static_cast<int32_t>(key) : greatest;
  }
  return greatest;
}

__global__ void __launch_bounds__(kThreads) screen_tiles(Table table, const uint32_t* bits) {
  if (table.header->refused != 0) return;
  bool suspicious = false;
  for_each_tile(table, blockIdx.x, gridDim.x, [&](int64_t number, const Tile& tile) {
    const Tensor& tensor = table.tensors[tile.tensor];
    const int32_t greatest = dispatch(tensor.weight.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      return greatest_key<T>(tensor.weight, tile, bits + number * kTileWords);
    });
    suspicious = suspicious || greatest >= static_cast<int32_t>(limit_of(tensor));
  });
  if (suspicious) atomicOr(&table.header->suspicious, 1u);
}

}  // namespace

cudaError_t screen(const Table& table, const uint32_t* bits, const Device& device) {
  return launch(screen_tiles, grid_for(device, table.tiles, 1), kThreads, device.stream, table,
                bits);
}

}  // namespace fastunlearn::cuda
