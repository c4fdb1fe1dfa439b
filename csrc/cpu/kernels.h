// The inner loops that exist once for each SIMD level, all with the same results.
#ifndef FASTUNLEARN_CPU_KERNELS_H_
#define FASTUNLEARN_CPU_KERNELS_H_

#include <cstdint>

#include "core/element.h"
#include "core/half.h"
#include "core/params.h"
#include "core/permutation.h"
#include "core/philox.h"
#include "core/simd.h"

namespace fastunlearn {

// Elements of a block, the unit that stays in the first-level cache.
inline constexpr int kBlock = 4096;
// Elements whose noise is made at a time.
inline constexpr int kNoiseBatch = 1024;

// Two keys around the threshold: a key above `hi` is surely selected, one below `lo` surely not.
struct Bracket {
  uint32_t lo, hi;
};

// What a scan found: the greatest key, and how many bits of each kind it set.
struct Scan {
  uint32_t greatest;
  int sure, maybe;
};

// What was drawn for the chosen elements, in their order; each with room for 16 more.
struct Drawn {
  const float* z;         // noise
  const uint32_t* words;  // of the rounding stream, or null where weights round to nearest
};

struct Kernels {
  // Compare the keys of x (shape (count,), count <= kBlock) with a bracket.
  //   sure, maybe: shape (ceil(count / 64),), one bit for each element: key > hi, lo <= key <= hi;
  //   bits beyond count are 0.
  Scan (*scan_f32)(const float* x, int count, Bracket bracket, uint64_t* sure, uint64_t* maybe);
  Scan (*scan_bf16)(const BFloat16* x, int count, Bracket bracket, uint64_t* sure, uint64_t* maybe);
  Scan (*scan_f16)(const Float16* x, int count, Bracket bracket, uint64_t* sure, uint64_t* maybe);

  // Number of set bits; words: shape (num_words,).
  int (*count)(const uint64_t* words, int num_words);

  // List the set bits of `words` (shape (num_words,)), counted from `first`; returns how many.
  // out: room for as many plus kExpandSlack.
  int (*expand)(const uint64_t* words, int num_words, int first, uint16_t* out);

  // Words of a stream that flat indices own; index, words: shape (count,).
  void (*words_at)(const uint64_t* index, int count, const Rng& rng, uint32_t stream,
                   uint32_t* words);
  // The same for 4 * num_blocks indices in a row from 4 * first_block; words: room for a
  // multiple of 64 of them.
  void (*words_from)(uint64_t first_block, int num_blocks, const Rng& rng, uint32_t stream,
                     uint32_t* words);
  // Words to noise; words, z: shape (count,), count <= kNoiseBatch, room for a multiple of 16.
  void (*noise)(NoiseKind kind, const uint32_t* words, int count, float* z);

  // Images of first, first + 1, ...; out: shape (count,).
  void (*permute)(const Permutation& permutation, uint64_t first, int count, uint64_t* out);
  // Preimages of first, first + 1, ...; out: shape (count,).
  void (*unpermute)(const Permutation& permutation, uint64_t first, int count, uint64_t* out);

  // Move the words whose bit in `mask` (shape (ceil(count / 64),)) is set to the front; in place.
  //   words: shape (count,), room for a multiple of 16.
  void (*pack)(uint32_t* words, const uint64_t* mask, int count);

  // Update the elements of w whose bit in `mask` (shape (ceil(count / 64),)) is set.
  //   w: shape (count,). drawn: shapes (number of bits set,). Where not `commit`, w stays as it is.
  void (*update_f32)(float* w, Drawn drawn, const uint64_t* mask, int count, RowChange change,
                     bool commit, Tally* tally);
  void (*update_bf16)(BFloat16* w, Drawn drawn, const uint64_t* mask, int count, RowChange change,
                      bool commit, Tally* tally);
  void (*update_f16)(Float16* w, Drawn drawn, const uint64_t* mask, int count, RowChange change,
                     bool commit, Tally* tally);
};

inline constexpr int kExpandSlack = 8;

// The kernels of each level; the CPU has to support it.
const Kernels& kernels_portable();
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();

inline const Kernels& kernels(SimdLevel level) {
#if defined(__x86_64__)
  if (level == SimdLevel::kAvx512) return kernels_avx512();
  if (level == SimdLevel::kAvx2) return kernels_avx2();
#endif
  return kernels_portable();
}

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CPU_KERNELS_H_
