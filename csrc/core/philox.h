// Philox4x32-10, the counter-based generator behind every random choice.
//
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11
// (Random123). Element i of the flat index space owns lane i & 3 of the block with the counter
// (lo32(i >> 2), hi32(i >> 2), stream, step), under the key (lo32(seed), hi32(seed)).
#ifndef FASTUNLEARN_CORE_PHILOX_H_
#define FASTUNLEARN_CORE_PHILOX_H_

#include <cstdint>

#include "core/lanes.h"
#include "core/platform.h"

namespace fastunlearn {

// Address of a random stream.
struct Rng {
  uint64_t seed;
  uint32_t step;
};

// Counter word 2: one stream for each purpose, so that no two purposes ever read the same word.
inline constexpr uint32_t kStreamNoise = 0;
inline constexpr uint32_t kStreamRounding = 1;  // reserved: stochastic rounding of 16-bit weights
inline constexpr uint32_t kStreamSample = 2;    // positions that the bracket samples
inline constexpr uint32_t kStreamPermutation = 0x100;  // + block number: round keys of Random-k

inline constexpr int kPhiloxRounds = 10;

// Four words for each lane.
template <class V>
struct PhiloxBlock {
  typename V::U word[4];
};

// Applies ten rounds to a counter of four words for each lane.
template <class V>
FASTUNLEARN_HD PhiloxBlock<V> philox4x32(PhiloxBlock<V> counter, uint64_t seed) {
  using U = typename V::U;
  uint32_t key0 = static_cast<uint32_t>(seed);
  uint32_t key1 = static_cast<uint32_t>(seed >> 32);
  U c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
  for (int round = 0; round < kPhiloxRounds; ++round) {
    U hi0, lo0, hi1, lo1;
    V::mul_hi_lo(c0, 0xD2511F53u, &hi0, &lo0);
    V::mul_hi_lo(c2, 0xCD9E8D57u, &hi1, &lo1);
    c0 = hi1 ^ c1 ^ V::splat_u(key0);
    c1 = lo1;
    c2 = hi0 ^ c3 ^ V::splat_u(key1);
    c3 = lo0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// The four words of blocks whose number is given in two halves.
template <class V>
FASTUNLEARN_HD PhiloxBlock<V> philox_block(typename V::U block_lo, typename V::U block_hi,
                                           const Rng& rng, uint32_t stream) {
  return philox4x32<V>({{block_lo, block_hi, V::splat_u(stream), V::splat_u(rng.step)}}, rng.seed);
}

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CORE_PHILOX_H_
