// Root mean squares in integers: each magnitude is scaled by the power of two that brings the
// greatest of its tensor below 2^30, rounded, squared and summed exactly, so that no order of the
// sums shows. Only the division and the square root at the end round.
#include <type_traits>

#include "core/element.h"
#include "core/keys.h"
#include "core/permutation.h"
#include "cuda/element.cuh"
#include "cuda/noise.h"
#include "cuda/tally.cuh"
#include "cuda/workspace.h"

namespace fastunlearn::cuda {
namespace {

constexpr int kBits = 30;

// What is known of one tensor; zero at first.
struct Squares {
  unsigned int greatest;         // key
  unsigned long long high, low;  // the sum is high * 2^32 + low
};

// Exponent e of the number x = f * 2^e that has a finite key > 0; f in [1/2, 1).
__device__ int exponent_of(uint32_t key) {
  const auto biased = static_cast<int>(key >> 23);
  return biased > 0 ? biased - 126 : bit_length(key) - 149;
}

// The number with this key times 2^shift, at most 2^30, rounded to nearest even.
__device__ uint64_t scaled(uint32_t key, int shift) {
  const auto biased = static_cast<int>(key >> 23);
  const uint32_t fraction = key & 0x7FFFFFu;
  const uint32_t mantissa = biased > 0 ? fraction | 0x800000u : fraction;
  const int left = (biased > 0 ? biased : 1) - 150 + shift;
  if (left >= 0) return mantissa << left;
  const int right = -left;
  if (right > 24) return 0;  // below 1/2
  return (mantissa + (1u << (right - 1)) - 1 + (mantissa >> right & 1u)) >> right;
}

// Calls body(key) for a thread's share of the tile.
template <class Body>
__device__ void for_each_key(const Memory& memory, const Tile& tile, const Body& body) {
  dispatch(memory.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Elements<T> elements(memory);
    for (int i = threadIdx.x; i < tile.count; i += kThreads) {
      body(key_of(to_float32(elements[tile.start + i]), NanRule::kError));
    }
  });
}

__global__ void __launch_bounds__(kThreads) find_greatest(Table table, Squares* squares) {
  for_each_tile(table, blockIdx.x, gridDim.x, [&](int64_t, const Tile& tile) {
    uint32_t greatest = 0;
    for_each_key(table.tensors[tile.tensor].weight, tile,
                 [&](uint32_t key) { greatest = key > greatest ? key : greatest; });
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      const uint32_t other = __shfl_xor_sync(kAllLanes, greatest, distance);
      greatest = other > greatest ? other : greatest;
    }
    // Few of the warps still find a greater one once some tiles are done.
    unsigned int* const known = &squares[tile.tensor].greatest;
    if (threadIdx.x % kWarp == 0 && greatest > *known) atomicMax(known, greatest);
  });
}

__global__ void __launch_bounds__(kThreads) sum_squares(Table table, Squares* squares) {
  int tensor = -1;
  unsigned long long high = 0, low = 0;
  const auto flush = [&] {
    if (tensor < 0) return;
    // Carried over first, so that the low halves of all warps cannot overflow.
    add_warp_sum(high + (low >> 32), &squares[tensor].high);
    add_warp_sum(low & 0xFFFFFFFFu, &squares[tensor].low);
    high = low = 0;
  };
  for_each_tile(table, blockIdx.x, gridDim.x, [&](int64_t, const Tile& tile) {
    if (tile.tensor != tensor) flush();
    tensor = tile.tensor;
    const uint32_t greatest = squares[tensor].greatest;
    if (greatest == 0 || greatest >= kInfinityKey) return;
    const int shift = kBits - exponent_of(greatest);
    for_each_key(table.tensors[tensor].weight, tile, [&](uint32_t key) {
      const uint64_t root = scaled(key, shift);
      high += root * root >> 32;
      low += root * root & 0xFFFFFFFFu;
    });
  });
  flush();
}

// x * 2^exponent; exact here.
__device__ double times_power(double x, int exponent) {
  return x * double_of(static_cast<uint64_t>(1023 + exponent) << 52);
}

// (high * 2^32 + low) / count, rounded to nearest even, for a quotient of at most 2^60: long
// division to 63 significant bits, the last of which also tells of a rest.
__device__ double quotient(uint64_t high, uint64_t low, uint64_t count) {
  high += low >> 32;
  low &= 0xFFFFFFFFu;
  uint64_t whole = 0, rest = 0;
  int bit = 95;  // of the dividend, the next; those below 0 are zero
  for (; whole >> 62 == 0; --bit) {
    const uint64_t next = bit >= 32 ? high >> (bit - 32) & 1 : bit >= 0 ? low >> bit & 1 : 0;
    rest = rest << 1 | next;
    const bool goes = rest >= count;
    whole = whole << 1 | (goes ? 1 : 0);
    if (goes) rest -= count;
  }
  return times_power(static_cast<double>(whole | (rest != 0 ? 1 : 0)), bit + 1);
}

__global__ void __launch_bounds__(kThreads)
    take_roots(Table table, const Squares* squares, double* out) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= table.count) return;
  const Squares found = squares[i];
  if (found.greatest > kInfinityKey) {
    out[i] = double_of(0x7FF8000000000000u);
  } else if (found.greatest == 0 || found.greatest == kInfinityKey) {
    out[i] = ScalarLanes::from_bits(found.greatest);
  } else {
    const auto numel = static_cast<uint64_t>(table.tensors[i].segment.numel);
    const int shift = kBits - exponent_of(found.greatest);
    out[i] = times_power(sqrt(quotient(found.high, found.low, numel)), -shift);
  }
}

}  // namespace

cudaError_t rms(Tensor* tensors, int count, void* workspace, size_t* workspace_bytes, double* out,
                const Device& device) {
  Workspace room(workspace);
  const Table table{room.take<Tensor>(count), count, number_tiles(tensors, count),
                    room.take<Header>(1)};
  Squares* const squares = room.take<Squares>(count);
  if (workspace == nullptr) {
    *workspace_bytes = room.bytes();
    return cudaSuccess;
  }
  cudaError_t status = cudaMemsetAsync(squares, 0, count * sizeof(Squares), device.stream);
  if (status == cudaSuccess) status = load_table(tensors, nullptr, {}, table, device);
  const int blocks = grid_for(device, table.tiles, 1);
  if (status == cudaSuccess) {
    status = launch(find_greatest, blocks, kThreads, device.stream, table, squares);
  }
  if (status == cudaSuccess) {
    status = launch(sum_squares, blocks, kThreads, device.stream, table, squares);
  }
  if (status == cudaSuccess) {
    status = launch(take_roots, (count + kThreads - 1) / kThreads + (count == 0), kThreads,
                    device.stream, table, squares, out);
  }
  return status;
}

}  // namespace fastunlearn::cuda
