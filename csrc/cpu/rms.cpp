#include "cpu/rms.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "core/keys.h"
#include "cpu/key_reader.h"

namespace fastunlearn {
namespace {

constexpr int kBits = 30;
typedef unsigned __int128 Sum;  // 2^60 times the greatest number of elements

float from_key(uint32_t key) { return ScalarLanes::from_bits(key); }

// sum / count, rounded to nearest even: 64 significant bits and a sticky one go to the conversion.
double quotient(Sum sum, int64_t count) {
  const auto divisor = static_cast<Sum>(count);
  int exponent = 0;
  Sum whole = sum / divisor, rest = sum % divisor;
  while (whole != 0 && whole >> 62 == 0) {
    rest *= 2;
    whole = whole * 2 + (rest >= divisor);
    rest -= rest >= divisor ? divisor : 0;
    --exponent;
  }
  const auto bits = static_cast<uint64_t>(whole) | (rest != 0 ? 1u : 0u);
  return std::ldexp(static_cast<double>(bits), exponent);
}

class SquareSum {
 public:
  SquareSum(const std::vector<Parameter>& tensors, const Execution& execution)
      : chunks_(tensors),
        keys_(tensors, ScoreKind::kPlain, NanRule::kError, execution.kernels),
        execution_(execution),
        greatest_(chunks_.size()),
        sums_(chunks_.size()) {}

  double rms(size_t tensor, int64_t numel) {
    const int64_t first = chunks_.first(tensor), last = chunks_.last(tensor);
    for_each_block(first, last, [this](int64_t chunk, const ScoreBlock& block) {
      for (int i = 0; i < block.count; ++i) {
        greatest_[chunk] = std::max(greatest_[chunk], block.key(i));
      }
    });
    uint32_t greatest = 0;
    for (int64_t i = first; i < last; ++i) greatest = std::max(greatest, greatest_[i]);
    if (greatest > kInfinityKey) return std::numeric_limits<double>::quiet_NaN();
    if (greatest == 0 || greatest == kInfinityKey) return from_key(greatest);
    int exponent;
    std::frexp(static_cast<double>(from_key(greatest)), &exponent);
    const int shift = kBits - exponent;
    const double scale = std::ldexp(1.0, shift);  // the product is exact
    for_each_block(first, last, [this, scale](int64_t chunk, const ScoreBlock& block) {
      uint64_t low = 0, high = 0;  // of kBlock squares below 2^60
      for (int i = 0; i < block.count; ++i) {
        const double scaled = static_cast<double>(from_key(block.key(i))) * scale;
        const auto rounded = static_cast<uint64_t>(std::nearbyint(scaled));
        low += rounded * rounded & 0xFFFFFFFFu;
        high += rounded * rounded >> 32;
      }
      sums_[chunk] += (static_cast<Sum>(high) << 32) + low;
    });
    Sum sum = 0;
    for (int64_t i = first; i < last; ++i) sum += sums_[i];
    return std::ldexp(std::sqrt(quotient(sum, numel)), -shift);
  }

 private:
  template <class Body>
  void for_each_block(int64_t first, int64_t last, const Body& body) const {
    chunks_.for_each(first, last, execution_.threads, [&](int, int64_t number) {
      const Chunk& chunk = chunks_[number];
      for (int from = 0; from < chunk.count; from += kBlock) {
        const int count = std::min(kBlock, chunk.count - from);
        body(number, keys_.block(chunk, from, count, &thread_room<BlockBuffer>()));
      }
    });
  }

  const Chunks chunks_;
  const KeyReader keys_;
  const Execution& execution_;
  std::vector<uint32_t> greatest_;
  std::vector<Sum> sums_;
};

}  // namespace

void rms(const std::vector<Parameter>& tensors, const Execution& execution, double* out) {
  SquareSum sums(tensors, execution);
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int64_t numel = tensors[i].weight.numel();
    out[i] = numel == 0 ? 0.0 : sums.rms(i, numel);
  }
}

}  // namespace fastunlearn
