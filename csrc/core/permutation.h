// Keyed permutation of [0, n): a Feistel network with cycle walking.
//
// Random-k takes the images of 0..K-1: exactly K distinct elements, without memory of size n; an
// element is one of them where its preimage is below K. The
// domain is rounded up to b = max(8, bit_length(n - 1)) bits, split into a left part of b - b / 2
// bits and a right part of b / 2 bits, which are updated in turn. An image outside [0, n) is
// permuted again until it falls inside: fewer than two walks on average above 128 elements.
#ifndef FASTUNLEARN_CORE_PERMUTATION_H_
#define FASTUNLEARN_CORE_PERMUTATION_H_

#include <cstdint>

#include "core/lanes.h"
#include "core/philox.h"
#include "core/platform.h"

namespace fastunlearn {

inline constexpr int kFeistelRounds = 12;
inline constexpr int kFeistelMinBits = 8;  // halves of one or two bits would be uneven

// Number of bits of x; 0 for 0.
FASTUNLEARN_HD int bit_length(uint64_t x) {
  int length = 0;
  while (x != 0) {
    ++length;
    x >>= 1;
  }
  return length;
}

// The finaliser of MurmurHash3 (Appleby, public domain).
template <class V>
FASTUNLEARN_HD typename V::U fmix32(typename V::U x) {
  x ^= x >> 16;
  x *= V::splat_u(0x85EBCA6Bu);
  x ^= x >> 13;
  x *= V::splat_u(0xC2B2AE35u);
  return x ^ (x >> 16);
}

struct Permutation {
  uint64_t n;
  int right_bits;
  uint32_t left_mask, right_mask;
  uint32_t key[kFeistelRounds];

  // n: size of the domain, 1 <= n <= 2^62. base: flat index of the domain's first element, which
  // gives each tensor its own permutation when the scope is one tensor.
  static FASTUNLEARN_HD Permutation make(uint64_t n, const Rng& rng, uint64_t base) {
    const int length = bit_length(n - 1);
    const int bits = length > kFeistelMinBits ? length : kFeistelMinBits;
    Permutation p;
    p.n = n;
    p.right_bits = bits / 2;
    p.left_mask = (1u << (bits - p.right_bits)) - 1;
    p.right_mask = (1u << p.right_bits) - 1;
    const PhiloxKeys<ScalarLanes> keys(rng.seed);
    for (int j = 0; j < kFeistelRounds / 4; ++j) {
      const auto block =
          philox_block<ScalarLanes>(static_cast<uint32_t>(base), static_cast<uint32_t>(base >> 32),
                                    kStreamPermutation + j, rng.step, keys);
      for (int w = 0; w < 4; ++w) p.key[4 * j + w] = block.word[w];
    }
    return p;
  }

  // One pass through the network, in place, on the two halves of each lane; several vectors side by
  // side hide the latency of the chain.
  template <class V, int kWays>
  FASTUNLEARN_HD void rounds(typename V::U (&left)[kWays], typename V::U (&right)[kWays]) const {
    using U = typename V::U;
    const U left_kept = V::splat_u(left_mask), right_kept = V::splat_u(right_mask);
    for (int j = 0; j < kFeistelRounds; j += 2) {
      const U even = V::splat_u(key[j]), odd = V::splat_u(key[j + 1]);
      for (int i = 0; i < kWays; ++i) left[i] ^= fmix32<V>(right[i] ^ even) & left_kept;
      for (int i = 0; i < kWays; ++i) right[i] ^= fmix32<V>(left[i] ^ odd) & right_kept;
    }
  }

  // The same, backwards.
  template <class V, int kWays>
  FASTUNLEARN_HD void rounds_back(typename V::U (&left)[kWays],
                                  typename V::U (&right)[kWays]) const {
    using U = typename V::U;
    const U left_kept = V::splat_u(left_mask), right_kept = V::splat_u(right_mask);
    for (int j = kFeistelRounds - 2; j >= 0; j -= 2) {
      const U even = V::splat_u(key[j]), odd = V::splat_u(key[j + 1]);
      for (int i = 0; i < kWays; ++i) right[i] ^= fmix32<V>(left[i] ^ odd) & right_kept;
      for (int i = 0; i < kWays; ++i) left[i] ^= fmix32<V>(right[i] ^ even) & left_kept;
    }
  }

  FASTUNLEARN_HD uint64_t operator()(uint64_t x) const { return walk<false>(x); }

  // The element whose image is y.
  FASTUNLEARN_HD uint64_t preimage(uint64_t y) const { return walk<true>(y); }

  template <bool kBack>
  FASTUNLEARN_HD uint64_t walk(uint64_t x) const {
    do {
      uint32_t left[1] = {static_cast<uint32_t>(x >> right_bits)};
      uint32_t right[1] = {static_cast<uint32_t>(x) & right_mask};
      if constexpr (kBack) {
        rounds_back<ScalarLanes>(left, right);
      } else {
        rounds<ScalarLanes>(left, right);
      }
      x = static_cast<uint64_t>(left[0]) << right_bits | right[0];
    } while (x >= n);
    return x;
  }
};

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CORE_PERMUTATION_H_
