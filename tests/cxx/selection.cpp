// Top-K and Random-k through the headers of csrc/cpu, on every SIMD level of this CPU and with one
// to eight threads, against an oracle that sorts. Bits, statistics and memory have to be equal.
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include "check.h"
#include "cpu/randomk.h"
#include "cpu/topk.h"
#include "oracle.h"
#include "requests.h"

namespace fastunlearn::testing {
namespace {

void check_bytes(const Bytes& actual, const Bytes& expected, const char* what, uint64_t seed) {
  equal(actual.size(), expected.size(), what, seed);
  if (actual.empty() || std::memcmp(actual.data(), expected.data(), actual.size()) == 0) {
    return holds(true, what, seed);
  }
  size_t first = 0;
  while (actual[first] == expected[first]) ++first;
  std::printf("%s, first difference at byte %zu\n", what, first);
  holds(false, what, seed);
}

void check_stats(const std::vector<int64_t>& actual, Outcome* expected, bool perturbed,
                 uint64_t seed) {
  const auto items = static_cast<int64_t>(actual.size()) / kStatColumns;
  for (int64_t i = 0; i < items; ++i) {
    for (int column = 0; column < kStatColumns; ++column) {
      const bool change = column == kStatOverflow || column == kStatUnchanged;
      const int64_t right = change && !perturbed ? 0 : expected->stat(i, static_cast<Stat>(column));
      if (actual[i * kStatColumns + column] != right) {
        std::printf("statistics: tensor %" PRId64 ", column %d\n", i, column);
      }
      equal(actual[i * kStatColumns + column], right, "statistics", seed);
    }
  }
}

// The calls that a kind of selection offers.
struct Calls {
  std::function<void(Request*, const Execution&, int64_t*)> perturb;
  std::function<void(Request*, const Execution&, const std::vector<uint8_t*>&, int64_t*)> select;
};

TopK topk_of(Request* request) {
  return {request->parameters(), request->k, request->per_tensor, request->score, request->nan};
}

RandomK randomk_of(Request* request) {
  return {request->parameters(), request->k, request->per_tensor, request->total,
          request->change.rng};
}

const Calls kTopKCalls = {
    [](Request* request, const Execution& execution, int64_t* stats) {
      topk_perturb(topk_of(request), request->change, execution, stats);
    },
    [](Request* request, const Execution& execution, const std::vector<uint8_t*>& packed,
       int64_t* stats) { topk_select(topk_of(request), execution, packed, stats); }};

const Calls kRandomKCalls = {
    [](Request* request, const Execution& execution, int64_t* stats) {
      randomk_perturb(randomk_of(request), request->change, execution, stats);
    },
    [](Request* request, const Execution& execution, const std::vector<uint8_t*>& packed,
       int64_t* stats) { randomk_select(randomk_of(request), execution, packed, stats); }};

void check_call(const Calls& calls, const Request& request, Outcome* expected,
                const Execution& execution, uint64_t seed) {
  constexpr int64_t kDirty = -77;  // what the calls have to overwrite
  Request select = request, perturb = request;
  std::vector<int64_t> stats(expected->stats.size(), kDirty);
  std::vector<Bytes> packed;
  std::vector<uint8_t*> addresses;
  for (const Bytes& bytes : expected->packed) packed.emplace_back(bytes.size(), 0xA5);
  for (Bytes& bytes : packed) addresses.push_back(bytes.data());
  calls.select(&select, execution, addresses, stats.data());
  check_stats(stats, expected, false, seed);
  std::fill(stats.begin(), stats.end(), kDirty);
  calls.perturb(&perturb, execution, stats.data());
  check_stats(stats, expected, true, seed);
  for (size_t i = 0; i < packed.size(); ++i) {
    check_bytes(packed[i], expected->packed[i], "packed bits", seed);
    check_bytes(select.items[i].weight.memory, request.items[i].weight.memory, "selecting", seed);
    check_bytes(perturb.items[i].weight.memory, expected->memory[i], "weights", seed);
    check_bytes(perturb.items[i].score.memory, request.items[i].score.memory, "scores", seed);
  }
}

void check_request(Request request, bool randomk, const std::vector<int>& threads, uint64_t seed) {
  Outcome expected = randomk ? expected_randomk(&request) : expected_topk(&request);
  const int64_t before = failures;
  for (const SimdLevel level : kSimdLevels) {
    if (!simd_supported(level)) continue;
    for (const int count : threads) {
      const Calls& calls = randomk ? kRandomKCalls : kTopKCalls;
      check_call(calls, request, &expected, {&kernels(level), count}, seed);
      if (failures == before) continue;
      std::printf("%s, seed %" PRIu64 ", level %s, %d threads\n", randomk ? "Random-k" : "Top-K",
                  seed, simd_name(level), count);
      return;
    }
  }
}

void check_small(uint64_t seeds) {
  constexpr int64_t kNumels[] = {0, 1, 2, 3, 40, 63, 64, 65, 1000, 2049, 4096, 4097, 10000};
  for (uint64_t seed = 0; seed < seeds; ++seed) {
    Draw draw(seed);
    std::vector<int64_t> numels(1 + draw.below(6));
    for (int64_t& numel : numels) numel = kNumels[draw.below(13)];
    for (const bool randomk : {false, true}) {
      check_request(make_request(seed, numels, randomk), randomk, {1, 3}, seed);
    }
  }
}

// Past the borders of a chunk, of the sampled bracket, and of what one thread does alone.
void check_middle(uint64_t seeds, const std::vector<int>& threads) {
  const std::vector<std::vector<int64_t>> lists = {
      {7, 200000, 0, 330003}, {270000}, {131072, 131072, 131073}, {65537, 3}, {65536}, {1200000}};
  for (uint64_t seed = 0; seed < seeds; ++seed) {
    const auto& numels = lists[seed % lists.size()];
    for (const bool randomk : {false, true}) {
      check_request(make_request(1000 + seed, numels, randomk), randomk, threads, 1000 + seed);
    }
  }
}

// How elements are dealt to threads, at sizes no test can allocate.
void check_shares() {
  for (const int64_t elements : {int64_t{1} << 40, (int64_t{1} << 45) + 12345}) {
    const int64_t shares = elements / kChunk + 1;
    for (const int64_t share : {int64_t{0}, int64_t{1}, shares / 3, shares - 1, shares}) {
      const auto exact = static_cast<__int128>(elements) * share / shares;
      equal(share_start(elements, share, shares), static_cast<uint64_t>(exact), "share", share);
    }
  }
}

}  // namespace
}  // namespace fastunlearn::testing

// Arguments: number of small requests, number of middle ones, and thread counts for these.
int main(int argc, char** argv) {
  if (argc < 4) return 2;
  std::vector<int> threads;
  for (int i = 3; i < argc; ++i) threads.push_back(std::atoi(argv[i]));
  fastunlearn::testing::check_shares();
  fastunlearn::testing::check_small(std::strtoull(argv[1], nullptr, 10));
  fastunlearn::testing::check_middle(std::strtoull(argv[2], nullptr, 10), threads);
  return fastunlearn::testing::finish();
}
