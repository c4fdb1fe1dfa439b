#include "cpu/read.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "cpu/pool.h"

namespace fastunlearn {
namespace {

constexpr size_t kPiece = size_t{1} << 18;  // bytes that a thread draws, as many as a chunk of fp32

uint64_t read_piece(const char* from, size_t bytes) {
  constexpr int kWords = 16;
  uint64_t sums[kWords] = {};
  size_t i = 0;
  for (; i + sizeof(sums) <= bytes; i += sizeof(sums)) {
    uint64_t words[kWords];
    std::memcpy(words, from + i, sizeof(words));
    for (int j = 0; j < kWords; ++j) sums[j] ^= words[j];
  }
  for (; i + sizeof(uint64_t) <= bytes; i += sizeof(uint64_t)) {
    uint64_t word;
    std::memcpy(&word, from + i, sizeof(word));
    sums[0] ^= word;
  }
  uint64_t sum = 0;
  for (const uint64_t x : sums) sum ^= x;
  return sum;
}

}  // namespace

uint64_t stream_read(const std::vector<std::pair<const void*, size_t>>& ranges, int threads) {
  std::vector<std::pair<const char*, size_t>> pieces;
  for (const auto& [address, bytes] : ranges) {
    for (size_t start = 0; start < bytes; start += kPiece) {
      pieces.emplace_back(static_cast<const char*>(address) + start,
                          std::min(kPiece, bytes - start));
    }
  }
  std::atomic<uint64_t> sum{0};
  parallel_for(threads, static_cast<int64_t>(pieces.size()), [&](int, int64_t i) {
    sum.fetch_xor(read_piece(pieces[i].first, pieces[i].second), std::memory_order_relaxed);
  });
  return sum;
}

}  // namespace fastunlearn
