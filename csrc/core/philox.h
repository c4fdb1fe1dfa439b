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
inline constexpr uint32_t kStreamRounding = 1;         // stochastic rounding of 16-bit weights
inline constexpr uint32_t kStreamSample = 2;           // positions that the bracket samples
inline constexpr uint32_t kStreamPermutation = 0x100;  // + block number: round keys of Random-k

inline constexpr int kPhiloxRounds = 10;

// Four words for each lane.
template <class V>
struct PhiloxBlock {
  typename V::U word[4];
};

// Round keys of a seed, spread over the lanes once for many blocks.
template <class V>
struct PhiloxKeys {
  typename V::Wide key[kPhiloxRounds][2];

  explicit FASTUNLEARN_HD PhiloxKeys(uint64_t seed) {
    uint32_t key0 = static_cast<uint32_t>(seed);
    uint32_t key1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < kPhiloxRounds; ++round) {
      key[round][0] = V::splat_wide(key0);
      key[round][1] = V::splat_wide(key1);
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
  }
};

// Applies ten rounds to a counter of four words for each lane.
//
// The words are worked on in 64-bit lanes, of which the low halves count: the products are whole
// there, and what gathers in the high halves is never read. That saves taking the halves of the
// products apart and together again in every round.
template <class V>
FASTUNLEARN_HD PhiloxBlock<V> philox4x32(const PhiloxBlock<V>& counter, const PhiloxKeys<V>& keys) {
  using Wide = typename V::Wide;
  Wide c[4][V::kParts];
  for (int w = 0; w < 4; ++w) V::widen(counter.word[w], c[w]);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    for (int part = 0; part < V::kParts; ++part) {
      const Wide product0 = V::mul_low(c[0][part], 0xD2511F53u);
      const Wide product1 = V::mul_low(c[2][part], 0xCD9E8D57u);
      c[0][part] = (product1 >> 32) ^ c[1][part] ^ keys.key[round][0];
      c[1][part] = product1;
      c[2][part] = (product0 >> 32) ^ c[3][part] ^ keys.key[round][1];
      c[3][part] = product0;
    }
  }
  PhiloxBlock<V> out;
  for (int w = 0; w < 4; ++w) out.word[w] = V::narrow(c[w]);
  return out;
}

// The four words of blocks whose number is given in two halves.
template <class V>
FASTUNLEARN_HD PhiloxBlock<V> philox_block(typename V::U block_lo, typename V::U block_hi,
                                           uint32_t stream, uint32_t step,
                                           const PhiloxKeys<V>& keys) {
  return philox4x32<V>({{block_lo, block_hi, V::splat_u(stream), V::splat_u(step)}}, keys);
}

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CORE_PHILOX_H_
