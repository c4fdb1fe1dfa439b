// The keyed permutation is one: every image inside the domain, no image twice.
#include "core/permutation.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "check.h"
#include "core/philox.h"

namespace {

using fastunlearn::Permutation;
using fastunlearn::Rng;
using fastunlearn::testing::equal;
using fastunlearn::testing::holds;

constexpr Rng kRngs[] = {{0, 0}, {~uint64_t{0}, 0xFFFFFFFFu}, {0x0123456789ABCDEFu, 3}};

// Images of 0..count-1, ascending.
std::vector<uint64_t> images(uint64_t n, const Rng& rng, uint64_t base, uint64_t count) {
  const Permutation perm = Permutation::make(n, rng, base);
  std::vector<uint64_t> found;
  for (uint64_t x = 0; x < count; ++x) found.push_back(perm(x));
  std::sort(found.begin(), found.end());
  return found;
}

void check_bijection(uint64_t n) {
  for (const Rng& rng : kRngs) {
    const std::vector<uint64_t> found = images(n, rng, n / 2, n);
    for (uint64_t i = 0; i < n; ++i) equal(found[i], i, "sorted image of all", n);
    const Permutation perm = Permutation::make(n, rng, n / 2);
    for (uint64_t x = 0; x < n; ++x) equal(perm.preimage(perm(x)), x, "preimage of the image", n);
  }
}

// Too large to enumerate: the first images, and from both ends of the domain.
void check_sample(uint64_t n) {
  constexpr uint64_t kCount = 1 << 13;
  for (const Rng& rng : kRngs) {
    const Permutation perm = Permutation::make(n, rng, 0);
    std::vector<uint64_t> found = images(n, rng, 0, kCount);
    for (uint64_t i = 1; i <= kCount; ++i) found.push_back(perm(n - i));
    std::sort(found.begin(), found.end());
    for (uint64_t x = 0; x < kCount; ++x) equal(perm.preimage(perm(x)), x, "preimage", n);
    holds(found.back() < n, "image inside the domain", n);
    holds(std::adjacent_find(found.begin(), found.end()) == found.end(), "no image twice", n);
    // Half of the 2^14 lie in the lower half, within 8 standard deviations of sqrt(2^14) / 2 = 64.
    const auto middle = std::lower_bound(found.begin(), found.end(), n / 2);
    const int64_t lower = middle - found.begin(), even = kCount;
    holds(lower > even - 512 && lower < even + 512, "images spread over the domain", n);
  }
}

void check_bit_length() {
  equal(fastunlearn::bit_length(0), 0, "bit_length of 0");
  for (int bit = 0; bit < 64; ++bit) {
    const uint64_t power = uint64_t{1} << bit;
    equal(fastunlearn::bit_length(power), bit + 1, "bit_length of a power of two", bit);
    equal(fastunlearn::bit_length(power - 1), bit, "bit_length below a power of two", bit);
  }
}

}  // namespace

int main() {
  check_bit_length();
  for (uint64_t n = 1; n <= 300; ++n) check_bijection(n);
  for (const uint64_t n : {1023, 1024, 1025, 65535, 65536, 65537}) check_bijection(n);
  for (const int bit : {31, 32, 33, 40, 61}) {
    for (const uint64_t more : {0, 1, 12345}) check_sample((uint64_t{1} << bit) + more);
  }
  check_sample(uint64_t{1} << 62);
  return fastunlearn::testing::finish();
}
