// Philox, the noise and the permutation against known answers, one a line: a name, how many numbers
// follow, and these in hexadecimal.
//   philox   c0 c1 c2 c3 k0 k1 w0 w1 w2 w3
//   noise    word normal uniform laplace        (the last three as bits)
//   randomk  n k seed step base i0 ... i(k-1)   (ascending)
//   image    n seed step base x y               (one image under the permutation)
#include <algorithm>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "check.h"
#include "core/lanes.h"
#include "core/noise.h"
#include "core/permutation.h"
#include "core/philox.h"

namespace {

using fastunlearn::Permutation;
using fastunlearn::Rng;
using fastunlearn::ScalarLanes;
using fastunlearn::testing::equal;
using fastunlearn::testing::holds;

using Numbers = std::vector<uint64_t>;

void check_philox(const Numbers& x) {
  const auto word = [&](int i) { return static_cast<uint32_t>(x.at(i)); };
  const fastunlearn::PhiloxKeys<ScalarLanes> keys(x.at(4) | x.at(5) << 32);
  const auto block =
      fastunlearn::philox4x32<ScalarLanes>({{word(0), word(1), word(2), word(3)}}, keys);
  const auto same =
      fastunlearn::philox_block<ScalarLanes>(word(0), word(1), word(2), word(3), keys);
  for (int i = 0; i < 4; ++i) {
    equal(block.word[i], x.at(6 + i), "philox4x32 word", i);
    equal(same.word[i], x.at(6 + i), "philox_block word", i);
  }
}

void check_noise(const Numbers& x) {
  const auto word = static_cast<uint32_t>(x.at(0));
  const auto bits = [](float z) { return ScalarLanes::bits(z); };
  equal(bits(fastunlearn::normal<ScalarLanes>(word)), x.at(1), "normal of word", word);
  equal(bits(fastunlearn::uniform<ScalarLanes>(word)), x.at(2), "uniform of word", word);
  equal(bits(fastunlearn::laplace<ScalarLanes>(word)), x.at(3), "laplace of word", word);
}

Permutation permutation(uint64_t n, uint64_t seed, uint64_t step, uint64_t base) {
  return Permutation::make(n, Rng{seed, static_cast<uint32_t>(step)}, base);
}

void check_randomk(const Numbers& x) {
  const uint64_t k = x.at(1), base = x.at(4);
  const Permutation perm = permutation(x.at(0), x.at(2), x.at(3), base);
  Numbers subset;
  for (uint64_t i = 0; i < k; ++i) subset.push_back(base + perm(i));
  std::sort(subset.begin(), subset.end());
  holds(x.size() == 5 + k, "length of the randomk line");
  for (uint64_t i = 0; i < k; ++i) equal(subset[i], x.at(5 + i), "randomk element", i);
}

void check_image(const Numbers& x) {
  const Permutation perm = permutation(x.at(0), x.at(1), x.at(2), x.at(3));
  equal(perm(x.at(4)), x.at(5), "image", x.at(4));
}

void check_case(const char* kind, const Numbers& numbers) {
  const auto is = [kind](const char* name) { return std::strcmp(kind, name) == 0; };
  if (is("philox")) return check_philox(numbers);
  if (is("noise")) return check_noise(numbers);
  if (is("randomk")) return check_randomk(numbers);
  if (is("image")) return check_image(numbers);
  holds(false, "known kind of line");
}

}  // namespace

int main(int argc, char** argv) {
  std::FILE* file = argc == 2 ? std::fopen(argv[1], "r") : nullptr;
  if (file == nullptr) {
    std::puts("known_answers: argument must be a file");
    return 2;
  }
  char kind[16];
  size_t count = 0;
  while (std::fscanf(file, "%15s %zu", kind, &count) == 2) {
    Numbers numbers(count);
    for (uint64_t& number : numbers) {
      holds(std::fscanf(file, "%" SCNx64, &number) == 1, "a number follows");
    }
    check_case(kind, numbers);
  }
  holds(std::feof(file) != 0, "the file is read to its end");
  std::fclose(file);
  return fastunlearn::testing::finish();
}
