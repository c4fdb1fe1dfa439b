#include <type_traits>

#include "core/keys.h"
#include "cuda/element.cuh"
#include "cuda/screen.h"
#include "cuda/warp.cuh"

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

// The greatest key of a lane's share of the selected elements; -1 where it has none.
template <class T>
__device__ int32_t greatest_key(const Memory& memory, const Tile& tile, const uint4& bits) {
  const Elements<T> weights(memory);
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
  int32_t greatest = -1;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t first = tile.start + 128 * lane_id() + 32 * i;
    for (uint32_t rest = words[i]; rest != 0; rest &= rest - 1) {
      const float weight = to_float32(weights[first + __ffs(static_cast<int>(rest)) - 1]);
      const auto key = static_cast<int32_t>(key_of(weight, NanRule::kError));
      greatest = key > greatest ? key : greatest;
    }
  }
  return greatest;
}

__global__ void __launch_bounds__(kThreads, 4) screen_tiles(Table table, const uint32_t* bits) {
  if (table.header->refused != 0) return;
  bool suspicious = false;
  for_each_tile(
      table, warp_of_grid(), int64_t{gridDim.x} * kWarps, [&](int64_t number, const Tile& tile) {
        const Tensor& tensor = table.tensors[tile.tensor];
        const auto* const words = reinterpret_cast<const uint4*>(bits + number * kTileWords);
        const uint4 own = words[lane_id()];
        const int32_t greatest = dispatch(tensor.weight.dtype, [&](auto* type) {
          using T = std::remove_pointer_t<decltype(type)>;
          return greatest_key<T>(tensor.weight, tile, own);
        });
        suspicious = suspicious || greatest >= static_cast<int32_t>(limit_of(tensor));
      });
  if (suspicious) atomicOr(&table.header->suspicious, 1u);
}

}  // namespace

cudaError_t screen(const Table& table, const uint32_t* bits, const Device& device) {
  return launch(screen_tiles, grid_for(device, table.tiles, kWarps), kThreads, device.stream, table,
                bits);
}

}  // namespace fastunlearn::cuda
