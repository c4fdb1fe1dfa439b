// Keys of a tile, read by a whole block: 16 bytes at a time where the memory allows it.
#ifndef FASTUNLEARN_CUDA_KEYS_CUH_
#define FASTUNLEARN_CUDA_KEYS_CUH_

#include <cstdint>
#include <type_traits>

#include "core/element.h"
#include "core/keys.h"
#include "cuda/selection.h"
#include "cuda/warp.cuh"

namespace fastunlearn::cuda {

__device__ inline float read_element(const Memory& memory, int64_t local) {
  return dispatch(memory.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    return to_float32(static_cast<const T*>(memory.data)[memory.offset(local)]);
  });
}

// Key of one element.
__device__ inline uint32_t key_at(const Tensor& tensor, int64_t local, ScoreKind kind,
                                  NanRule nan) {
  const float score = read_element(tensor.score, local);
  const float weight = kind == ScoreKind::kProduct ? read_element(tensor.weight, local) : 0.0f;
  return key_of(score_of(kind, weight, score), nan);
}

// The keys of a tile that one thread holds. They were read 2^log_vector at a time: number j is of
// the element at place(j).
struct Keys {
  uint32_t key[kPerThread];
  uint32_t held;  // bit j: there is such an element
  int log_vector;

  __device__ int place(int j) const {
    const int step = j >> log_vector, own = j & ((1 << log_vector) - 1);
    return ((step * kThreads + static_cast<int>(threadIdx.x)) << log_vector) + own;
  }

  // Bits of the keys that satisfy a condition.
  template <class Condition>
  __device__ uint32_t where(const Condition& condition) const {
    uint32_t found = 0;
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      found |= static_cast<uint32_t>(condition(key[j])) << j;
    }
    return found & held;
  }

  // Calls body(j, key) for the keys whose bits are set.
  template <class Body>
  __device__ void for_each(uint32_t bits, const Body& body) const {
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      if (bits >> j & 1) body(j, key[j]);
    }
  }

  // Writes one bit for each element of the tile from a bit for each held key; for whole warps.
  //   words: shape (kTileWords,)
  __device__ void write_words(uint32_t found, uint32_t* words) const {
    const int vector = 1 << log_vector, lanes = 32 >> log_vector;  // that make one word
    const int lane = lane_id() & (lanes - 1);
    for (int j = 0; j < kPerThread; j += vector) {
      uint32_t word = (found >> j & ((1u << vector) - 1)) << lane * vector;
      for (int distance = 1; distance < lanes; distance *= 2) {
        word |= __shfl_xor_sync(kAllLanes, word, distance);
      }
      if (lane == 0) words[place(j) / 32] = word;
    }
  }
};

// Element j of 16 bytes of memory; j is known to the compiler.
template <class T>
__device__ __forceinline__ T element_of(const uint4& raw, int j) {
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
  if constexpr (std::is_same_v<T, float>) {
    return ScalarLanes::from_bits(words[j]);
  } else if constexpr (std::is_same_v<T, double>) {
    return double_of(static_cast<uint64_t>(words[2 * j + 1]) << 32 | words[2 * j]);
  } else {
    return {static_cast<uint16_t>(words[j / 2] >> (16 * (j % 2)))};
  }
}

// The elements of a tile that this thread holds, as fp32; see Keys::place for which they are.
using Values = float[kPerThread];

// Whole tile, contiguous, aligned: a few independent loads of 16 bytes.
template <class T>
__device__ void load_vectors(const Memory& memory, int64_t start, Values& out) {
  constexpr int kVector = 16 / sizeof(T);
  constexpr int kSteps = kPerThread / kVector;
  const auto* const from =
      reinterpret_cast<const uint4*>(static_cast<const T*>(memory.data) + start) + threadIdx.x;
  uint4 raw[kSteps];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) raw[step] = __ldcs(from + step * kThreads);
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    out[j] = to_float32(element_of<T>(raw[j / kVector], j % kVector));
  }
}

// Any tile: consecutive threads read consecutive elements.
template <class T>
__device__ void load_single(const Memory& memory, const Tile& tile, Values& out) {
  const T* const from = static_cast<const T*>(memory.data);
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const int place = j * kThreads + static_cast<int>(threadIdx.x);
    out[j] = place < tile.count ? to_float32(from[memory.offset(tile.start + place)]) : 0.0f;
  }
}

__device__ __forceinline__ void load(const Memory& memory, const Tile& tile, bool vectors,
                                     Values& out) {
  dispatch(memory.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (vectors) {
      load_vectors<T>(memory, tile.start, out);
    } else {
      load_single<T>(memory, tile, out);
    }
  });
}

// Whether tiles of a tensor can be read 16 bytes at a time.
__device__ inline bool in_vectors(const Memory& memory) {
  return memory.dims == 0 && reinterpret_cast<uintptr_t>(memory.data) % 16 == 0;
}

__device__ inline int log_vector(DType dtype) {
  return dtype == DType::kFloat64 ? 1 : dtype == DType::kFloat32 ? 2 : 3;
}

// The keys of a tile; for a whole block.
//   kProduct: whether the score is ScoreKind::kProduct
template <bool kProduct>
__device__ __forceinline__ Keys read_keys(const Selection& selection, const Tile& tile) {
  const Tensor& tensor = selection.table.tensors[tile.tensor];
  const int width = log_vector(tensor.score.dtype);
  bool vectors = tile.count == kTile && in_vectors(tensor.score);
  Values score;
  [[maybe_unused]] Values weight;
  if constexpr (kProduct) {
    vectors = vectors && in_vectors(tensor.weight) && log_vector(tensor.weight.dtype) == width;
    load(tensor.weight, tile, vectors, weight);
  }
  load(tensor.score, tile, vectors, score);
  Keys keys{{}, 0, vectors ? width : 0};
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    float factor = 0;
    if constexpr (kProduct) factor = weight[j];
    keys.key[j] = key_of(score_of(selection.score, factor, score[j]), selection.nan);
    const bool held = vectors || j * kThreads + static_cast<int>(threadIdx.x) < tile.count;
    keys.held |= static_cast<uint32_t>(held) << j;
  }
  return keys;
}

// Calls body(place, key) for every element of a tile; for a whole block. Smaller and slower than
// read_keys, for what is rarely needed.
template <class Body>
__device__ void for_each_key(const Selection& selection, const Tile& tile, const Body& body) {
  const Tensor& tensor = selection.table.tensors[tile.tensor];
  for (int place = threadIdx.x; place < tile.count; place += kThreads) {
    body(place, key_at(tensor, tile.start + place, selection.score, selection.nan));
  }
}

}  // namespace fastunlearn::cuda

#endif  // FASTUNLEARN_CUDA_KEYS_CUH_
