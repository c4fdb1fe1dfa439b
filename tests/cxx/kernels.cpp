// The kernels of every SIMD level that this CPU runs, against the scalar functions of csrc/core.
//
// Every buffer has exactly the size that cpu/kernels.h promises, so that AddressSanitizer sees an
// access beyond it.
#include "cpu/kernels.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "check.h"
#include "core/half.h"
#include "core/keys.h"
#include "core/noise.h"
#include "cpu/tensor_view.h"
#include "generate.h"

namespace fastunlearn::testing {
namespace {

constexpr int kCounts[] = {0,  1,  2,  3,   4,   7,    8,    15,   16,   17,
                           63, 64, 65, 127, 128, 1000, 1023, 4031, 4095, 4096};

using Bitmap = std::vector<uint64_t>;

bool bit(const Bitmap& map, int i) { return (map[i / 64] >> i % 64 & 1) != 0; }

int set_bits(const Bitmap& map) {
  int count = 0;
  for (int i = 0; i < 64 * static_cast<int>(map.size()); ++i) count += bit(map, i);
  return count;
}

template <class T>
using ScanKernel = Scan (*)(const T*, int, Bracket, uint64_t*, uint64_t*);

template <class T>
void check_scan_with(ScanKernel<T> scan, const std::vector<T>& x, Bracket bracket) {
  const int count = static_cast<int>(x.size());
  Bitmap sure((count + 63) / 64, ~uint64_t{0}), maybe = sure;
  const Scan found = scan(x.data(), count, bracket, sure.data(), maybe.data());
  uint32_t expected = 0;
  for (int i = 0; i < count; ++i) {
    const uint32_t key = key_of(to_float32(x[i]), NanRule::kError);
    expected = key > expected ? key : expected;
    if (key > kInfinityKey) continue;  // payloads differ between levels; such a score is refused
    equal(bit(sure, i), key > bracket.hi, "sure", i);
    equal(bit(maybe, i), bracket.lo <= key && key <= bracket.hi, "maybe", i);
  }
  const bool nan = expected > kInfinityKey;
  equal(nan ? found.greatest > kInfinityKey : found.greatest, nan ? 1 : expected, "greatest key",
        count);
  equal(found.sure, set_bits(sure), "number of sure", count);
  equal(found.maybe, set_bits(maybe), "number of maybe", count);
  for (int i = count; i < 64 * static_cast<int>(sure.size()); ++i) {
    holds(!bit(sure, i) && !bit(maybe, i), "bits beyond the count are 0", i);
  }
}

template <class T>
void check_scan(ScanKernel<T> scan) {
  for (const int count : kCounts) {
    Draw draw(count);
    const std::vector<T> x = values<T>(&draw, count);
    const std::vector<T> plain = numbers<T>(&draw, count);
    const uint32_t some = count == 0 ? 7 : key_of(to_float32(plain[count / 2]), NanRule::kError);
    for (const Bracket bracket :
         {Bracket{0, 0}, Bracket{0, 0x7FFFFFFF}, Bracket{some, some}, Bracket{some / 2, some},
          Bracket{some, kInfinityKey}, Bracket{1, 0x00800000}, Bracket{kInfinityKey, 0x7FFFFFFF}}) {
      check_scan_with<T>(scan, x, bracket);
      check_scan_with<T>(scan, plain, bracket);
    }
  }
}

void check_expand(const Kernels& kernels) {
  for (const int num_words : {0, 1, 2, 3, 64}) {
    for (const int density : {0, 1, 2, 8, 64}) {
      Draw draw(density);
      Bitmap map(num_words);
      std::vector<uint16_t> expected;
      const int first = 64 * density;
      for (int i = 0; i < 64 * num_words; ++i) {
        if (draw.below(64) >= static_cast<uint32_t>(density)) continue;
        map[i / 64] |= uint64_t{1} << i % 64;
        expected.push_back(static_cast<uint16_t>(first + i));
      }
      std::vector<uint16_t> out(expected.size() + kExpandSlack);
      const int found = kernels.expand(map.data(), num_words, first, out.data());
      equal(found, expected.size(), "set bits", density);
      equal(kernels.count(map.data(), num_words), expected.size(), "count", density);
      for (size_t i = 0; i < expected.size(); ++i) equal(out[i], expected[i], "place", i);
    }
  }
}

void check_pack(const Kernels& kernels) {
  for (const int count : kCounts) {
    for (const int density : {0, 1, 20, 64}) {
      Draw draw(count + density);
      std::vector<uint32_t> words((count + 15) / 16 * 16), expected;
      Bitmap mask((count + 63) / 64);
      for (int i = 0; i < count; ++i) {
        words[i] = draw.word();
        if (draw.below(64) >= static_cast<uint32_t>(density)) continue;
        mask[i / 64] |= uint64_t{1} << i % 64;
        expected.push_back(words[i]);
      }
      kernels.pack(words.data(), mask.data(), count);
      for (size_t i = 0; i < expected.size(); ++i) equal(words[i], expected[i], "packed", i);
    }
  }
}

void check_words(const Kernels& kernels) {
  const Rng rng{0xFEDCBA9876543210u, 5};
  for (const int count : kCounts) {
    Draw draw(count);
    std::vector<uint64_t> index(count);
    for (uint64_t& i : index) i = (uint64_t{draw.word()} << 30) ^ draw.word();
    std::vector<uint32_t> words(count);
    for (const uint32_t stream : {kStreamNoise, kStreamRounding}) {
      kernels.words_at(index.data(), count, rng, stream, words.data());
      for (int i = 0; i < count; ++i) {
        equal(words[i], word_of(index[i], stream, rng), "words_at", index[i]);
      }
    }
  }
  // The low half of the block number overflows inside a vector.
  for (const uint64_t first : {uint64_t{0}, uint64_t{0xFFFFFFF9}, uint64_t{1} << 40}) {
    for (const int num_blocks : {0, 1, 3, 4, 15, 16, 17, 256}) {
      std::vector<uint32_t> words((4 * num_blocks + 63) / 64 * 64);
      kernels.words_from(first, num_blocks, rng, kStreamNoise, words.data());
      for (int i = 0; i < 4 * num_blocks; ++i) {
        equal(words[i], word_of(4 * first + i, kStreamNoise, rng), "words_from", 4 * first + i);
      }
    }
  }
}

void check_noise(const Kernels& kernels) {
  for (const NoiseKind kind : {NoiseKind::kNormal, NoiseKind::kUniform, NoiseKind::kLaplace}) {
    for (const int count : kCounts) {
      if (count > kNoiseBatch) continue;
      for (int tails = 0; tails < 3; ++tails) {  // none, some, all of them beyond the split
        Draw draw(count);
        std::vector<uint32_t> words((count + 15) / 16 * 16);
        for (uint32_t& word : words) {
          word = draw.word();
          if (tails == 0) word = 0x60000000u + (word >> 2);
          if (tails == 2) word = word >> 4 ^ (word % 2 == 0 ? 0xFFFFFFFFu : 0);
        }
        std::vector<float> z(words.size());
        kernels.noise(kind, words.data(), count, z.data());
        for (int i = 0; i < count; ++i) {
          const uint32_t expected = ScalarLanes::bits(noise_of(kind, words[i]));
          equal(ScalarLanes::bits(z[i]), expected, "noise of word", words[i]);
        }
      }
    }
  }
}

void check_permute(const Kernels& kernels) {
  for (const uint64_t n : {uint64_t{1}, uint64_t{2}, uint64_t{129}, uint64_t{4097}, uint64_t{65536},
                           (uint64_t{1} << 31) + 1, (uint64_t{1} << 40) + 12345}) {
    const Permutation permutation = Permutation::make(n, Rng{n, 1}, 3);
    for (int count : kCounts) {
      if (static_cast<uint64_t>(count) > n) count = static_cast<int>(n);
      for (const uint64_t first : {uint64_t{0}, n - count}) {
        std::vector<uint64_t> out(count);
        kernels.permute(permutation, first, count, out.data());
        for (int i = 0; i < count; ++i) equal(out[i], permutation(first + i), "permute", first + i);
        kernels.unpermute(permutation, first, count, out.data());
        for (int i = 0; i < count; ++i) {
          equal(out[i], permutation.preimage(first + i), "unpermute", first + i);
        }
      }
    }
  }
}

template <class T>
using Update = void (*)(T*, Drawn, const uint64_t*, int, RowChange, bool, Tally*);

template <class T>
struct Case {
  std::vector<T> w;
  std::vector<float> z;
  Bitmap mask;
};

template <class T>
Case<T> make_case(int count, int density) {
  Draw draw(count + density);
  Case<T> made{values<T>(&draw, count), std::vector<float>(count), Bitmap((count + 63) / 64)};
  for (float& z : made.z) z = normal<ScalarLanes>(draw.word());
  for (int i = 0; i < count; ++i) {
    if (draw.below(64) < static_cast<uint32_t>(density)) made.mask[i / 64] |= uint64_t{1} << i % 64;
  }
  return made;
}

// Words that are just below, at or just above the border between the neighbours, or anywhere.
template <class T>
std::vector<uint32_t> rounding_words(const Case<T>& given, RowChange change) {
  Draw draw(given.w.size());
  std::vector<uint32_t> words(given.w.size());
  for (size_t i = 0; i < words.size(); ++i) {
    const double value = exact(given.w[i], given.z[i], change);
    const uint32_t border = std::isfinite(value) ? gaps_of<T>(value).fraction : 0;
    words[i] = i % 4 == 3 ? draw.word() : border + static_cast<uint32_t>(i % 4) - 1;
  }
  return words;
}

template <class T>
void check_update_with(Update<T> update, const Case<T>& given, RowChange change, bool commit) {
  std::vector<T> w = given.w;
  Tally tally, expected;
  const int count = static_cast<int>(w.size());
  const std::vector<uint32_t> words = rounding_words(given, change);
  std::vector<float> z;
  std::vector<uint32_t> own;
  for (int i = 0; i < count; ++i) {
    if (!bit(given.mask, i)) continue;
    z.push_back(given.z[i]);
    own.push_back(words[i]);
  }
  z.resize(z.size() + 16);
  own.resize(own.size() + 16);
  const bool by_words = rounds_by_words<T>(change.mode, change.rounding);
  const Drawn drawn = {z.data(), by_words ? own.data() : nullptr};
  update(w.data(), drawn, given.mask.data(), count, change, commit, &tally);
  for (int i = 0; i < count; ++i) {
    const T old = given.w[i];
    const T fresh =
        bit(given.mask, i) ? updated(old, given.z[i], words[i], change, &expected) : old;
    equal(bits_of(w[i]), bits_of(commit ? fresh : old), "weight", i);
  }
  equal(tally.overflow, expected.overflow, "overflow", count);
  equal(tally.unchanged, expected.unchanged, "unchanged", count);
}

template <class T>
void check_update(Update<T> update) {
  for (const int count : kCounts) {
    for (const int density : {0, 1, 20, 64}) {
      const Case<T> given = make_case<T>(count, density);
      for (const double scale : {0.0, -0.0, 0.1, 1e-6, 1e-10, 1e-42, 3e4, 3e38, 1e300}) {
        for (const UpdateMode mode : {UpdateMode::kAdd, UpdateMode::kReplace, UpdateMode::kZero}) {
          check_update_with<T>(update, given, {scale, mode, Rounding::kNearest}, true);
          check_update_with<T>(update, given, {scale, mode, Rounding::kStochastic}, true);
        }
        check_update_with<T>(update, given, {scale, UpdateMode::kAdd, Rounding::kNearest}, false);
      }
    }
  }
}

// Weights on both sides of a page border, of which those behind it are not chosen and must not be
// written: the program would end.
//   before: weights of the first page; count: weights in all.
template <class T>
void check_untouched_with(Update<T> update, int before, int count) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* const pages =
      mmap(nullptr, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  char* const border = static_cast<char*>(pages) + page;
  mprotect(border, page, PROT_READ);
  T* const w = reinterpret_cast<T*>(border) - before;
  Bitmap mask((count + 63) / 64);
  for (int i = 0; i < before; ++i) mask[i / 64] |= uint64_t{1} << i % 64;
  const std::vector<float> z(before + 16, 1.0f);
  Tally tally;
  update(w, {z.data(), nullptr}, mask.data(), count, {0.5, UpdateMode::kAdd, Rounding::kNearest},
         true, &tally);
  for (int i = 0; i < count; ++i) {
    equal(bits_of(w[i]), bits_of(narrow<T>(i < before ? 0.5 : 0.0)), "weight at a border", i);
  }
  munmap(pages, 2 * page);
}

// A vector of which nothing is chosen, and the rest behind the last whole vector; `masked`: whether
// this level stores the chosen elements of a vector alone.
template <class T>
void check_untouched(Update<T> update, bool masked) {
  check_untouched_with<T>(update, 64, 128);
  check_untouched_with<T>(update, 65, 67);
  for (int before = 49; masked && before < 64; ++before) {
    check_untouched_with<T>(update, before, 128);
  }
}

void check_level(const Kernels& kernels, bool masked) {
  check_scan<float>(kernels.scan_f32);
  check_scan<BFloat16>(kernels.scan_bf16);
  check_scan<Float16>(kernels.scan_f16);
  check_expand(kernels);
  check_pack(kernels);
  check_words(kernels);
  check_noise(kernels);
  check_permute(kernels);
  check_update<float>(kernels.update_f32);
  check_update<BFloat16>(kernels.update_bf16);
  check_update<Float16>(kernels.update_f16);
  check_untouched<float>(kernels.update_f32, masked);
  check_untouched<BFloat16>(kernels.update_bf16, masked);
  check_untouched<Float16>(kernels.update_f16, masked);
}

}  // namespace
}  // namespace fastunlearn::testing

int main() {
  for (const fastunlearn::SimdLevel level : fastunlearn::kSimdLevels) {
    if (!fastunlearn::simd_supported(level)) continue;
    std::printf("level %s\n", fastunlearn::simd_name(level));
    const bool masked = level == fastunlearn::SimdLevel::kAvx512;
    fastunlearn::testing::check_level(fastunlearn::kernels(level), masked);
  }
  return fastunlearn::testing::finish();
}
