// The selection of the Top-K under the harness against an oracle that sorts: every way to a cut,
// each told by what the stages leave behind.
#include "selection.h"

#include <cmath>
#include <cstdlib>
#include <string>

#include "calls.h"

namespace fastunlearn::testing {
namespace {

constexpr int64_t kMany = 300000;

// Runs the stages and compares; the bits and statistics stay in the result.
Stages selected(Request* request, Call* call, Outcome* expected, uint64_t seed) {
  Stages stages(*request, &call->tensors);
  stages.run(call->device);
  expect_bits(*call, stages.own.bits, *expected, seed);
  for (int i = 0; i < call->count(); ++i) {
    for (const Stat column : {kStatThreshold, kStatTies, kStatTiesTaken, kStatNan}) {
      equal(stages.own.stats[i * kStatColumns + column], expected->stat(i, column), "statistics",
            seed);
    }
  }
  return stages;
}

struct Case {
  const char* name;
  int64_t k;
  Ties ties;
  Way way;  // searched, reread, overflown, missed
};

// Of 300,000 elements 18,750 are sampled; about 5,400 on each side of the threshold are candidates,
// and there is room for 14,600 (16-bit scores: 16,100).
constexpr int64_t kHalf = kMany / 2;
constexpr Case kCases[] = {
    {"no ties", kHalf, {0, 0}, {true, false, false, false}},
    {"ties at hi", kHalf, {kHalf - 8000, kHalf + 1000}, {false, false, false, false}},
    {"many ties at hi", kHalf, {kHalf - 30000, kHalf + 2000}, {false, true, true, false}},
    {"ties at lo", kHalf, {kHalf - 1000, kHalf + 8000}, {false, false, false, false}},
    {"many ties at lo", kHalf, {kHalf - 2000, kHalf + 30000}, {false, true, true, false}},
    {"ties inside", kHalf, {kHalf - 500, kHalf + 500}, {true, false, false, false}},
    {"many ties above", kHalf, {kHalf - 30000, kHalf - 2000}, {true, true, true, false}},
    {"many ties below", kHalf, {kHalf + 2000, kHalf + 30000}, {true, true, true, false}},
    {"all equal", 77777, {0, kMany}, {false, true, true, false}},
    {"one of all", 1, {0, 0}, {true, false, false, false}},
    {"all of all", kMany, {0, 0}, {true, false, false, false}},
    {"none", 0, {0, 0}, {false, false, false, false}},
};

void expect_way(const Stages& stages, const Way& way, const char* name) {
  const Way found = stages.way(0);
  equal(found.searched, way.searched, name);
  equal(found.reread, way.reread, name);
  equal(found.overflown, way.overflown, name);
  equal(found.missed, way.missed, name);
}

// Selects from values in one tensor, then in several, on grids of different sizes; returns the
// last of the selections, which all came the same way.
template <class T>
Stages select_values(const std::vector<T>& values, DType dtype, int64_t k, const Way& way,
                     const char* name, const std::vector<int>& multiprocessors = {3}) {
  const auto size = static_cast<int64_t>(values.size());
  Request request = plain_request(values, dtype, {70000, 0, 65536, 1, size - 135537}, {k});
  Outcome expected = expected_topk(&request);
  Draw draw(k);
  Call call(&draw, &request);
  for (const int count : multiprocessors) {
    call.device.multiprocessors = count;
    expect_way(selected(&request, &call, &expected, k), way, name);
  }
  Request whole = plain_request(values, dtype, {size}, {k});
  Call other(&draw, &whole);
  Stages stages(whole, &other.tensors);
  stages.run(other.device);
  expect_way(stages, way, name);
  return stages;
}

// Every step-th case from one on.
template <class T>
void test_ways(DType dtype, const std::vector<int>& multiprocessors, size_t first, size_t step) {
  for (size_t i = first; i < std::size(kCases); i += step) {
    const Case& one = kCases[i];
    const std::vector<T> values = with_ties<T>(kMany, one.ties);
    Way way = one.way;
    // 512 alike, at an end of the bracket.
    if (sizeof(T) == 2 && (one.k == 1 || one.k == kMany)) way.searched = false;
    const Stages stages = select_values(values, dtype, one.k, way, one.name, multiprocessors);
    const cuda::Problem& problem = stages.own.problems[0];
    const auto [lo, hi] = problem.bracket;
    const std::string name = one.name;
    if (name.find("at hi") != name.npos) holds(problem.key == hi && lo < hi, one.name);
    if (name.find("at lo") != name.npos) holds(problem.key == lo && lo < hi, one.name);
  }
}

// Where draw_sample looks in `count` elements.
std::vector<int64_t> sampled(int64_t count, int64_t samples) {
  std::vector<int64_t> places;
  const int64_t width = count / samples;
  const PhiloxKeys<ScalarLanes> keys(0);
  for (int64_t i = 0; i < samples; ++i) {
    const auto block =
        philox_block<ScalarLanes>(static_cast<uint32_t>(i / 4), 0, kStreamSample, 0, keys);
    const auto inside = static_cast<int64_t>(uint64_t{block.word[i % 4]} * width >> 32);
    places.push_back(width * i + count % samples * i / samples + inside);
  }
  return places;
}

// The sample sees only the greatest values, or only the smallest.
void test_missed() {
  for (const float factor : {4.0f, 0.25f}) {
    std::vector<float> values = with_ties<float>(kMany, {0, 0});
    for (const int64_t place : sampled(kMany, cuda::sample_size(kMany, kHalf))) {
      values[place] *= factor;
    }
    const Way way = {true, true, false, true};
    const Stages stages = select_values(values, DType::kFloat32, kHalf, way, "missed", {1, 64});
    const cuda::Problem& problem = stages.own.problems[0];
    holds(factor > 1 ? problem.key < problem.bracket.lo : problem.key > problem.bracket.hi,
          "side of the bracket");
  }
}

// Ties at borders of tiles and tensors, cut behind each of them.
//   others: the elements that do not tie are distinct, half of them greater; else there are none
void test_cuts(bool others) {
  const std::vector<int64_t> numels = {5000, 0, 4096, 3, 8192};
  const int64_t count = 17291;
  std::vector<float> values = with_ties<float>(count, {0, others ? 0 : count});
  const std::vector<int64_t> ties = {0,    1,    4094, 4095, 4096,  4097,  4999,
                                     5000, 9095, 9096, 9098, 13194, 13195, count - 1};
  const float tied = of_rank<float>(others ? count / 2 : 0);
  if (others) std::replace(values.begin(), values.end(), tied, of_rank<float>(count));
  for (const int64_t place : ties) values[place] = tied;
  const auto greater =
      std::count_if(values.begin(), values.end(), [=](float x) { return x > tied; });
  for (size_t i = 0; i < ties.size(); ++i) {
    const int64_t k = others ? greater + static_cast<int64_t>(i) + 1 : ties[i] + 1;
    Request request = plain_request(values, DType::kFloat32, numels, {k});
    Outcome expected = expected_topk(&request);
    Draw draw(i);
    Call call(&draw, &request);
    const Stages stages = selected(&request, &call, &expected, i);
    expect_way(stages, {others, !others, !others, false}, "cut");
    const cuda::Problem& problem = stages.own.problems[0];
    if (problem.ties == problem.ties_taken) {
      equal(problem.tie_tile, problem.last_tile, "nothing is cut", i);
      continue;
    }
    int tensor = 0;
    while (request.items[tensor].segment.end() <= ties[i]) ++tensor;
    const int64_t local = ties[i] - request.items[tensor].segment.base;
    equal(problem.tie_tile, call.tensors[tensor].first_tile + local / cuda::kTile, "tile", i);
    equal(problem.tie_end, local % cuda::kTile + 1, "place", i);
  }
}

// Every tensor by itself: a block has several of them, and the small ones are not sampled.
void test_each_tensor(uint64_t seed, bool tied, int multiprocessors) {
  constexpr int64_t kSizes[] = {0, 1, 4095, 4096, 4097, 70000, 5000, 300};
  Draw draw(seed);
  std::vector<int64_t> numels, k;
  for (int i = 0; i < 26; ++i) {
    const int64_t numel = kSizes[i == 12 ? 5 : draw.below(8) % 5 + i / 13 * 3 % 8];
    numels.push_back(numel == 70000 && i != 12 ? 6000 : numel);
    k.push_back(some_count(&draw, numels.back()));
  }
  int64_t total = 0;
  for (const int64_t numel : numels) total += numel;
  const std::vector<float> values =
      with_ties<float>(total, tied ? Ties{total / 9, total} : Ties{0, 0});
  Request request = plain_request(values, DType::kFloat32, numels, k);
  Outcome expected = expected_topk(&request);
  Call call(&draw, &request);
  call.device.multiprocessors = multiprocessors;
  const Stages stages = selected(&request, &call, &expected, seed);
  holds(stages.way(0).overflown == tied, "room for the candidates of all", seed);
}

// Copies of the scores, or of the weights, a little behind an address that allows wide reads.
void misalign(cuda::Memory* memory, Tensor* from, std::deque<Dirty>* copies) {
  const int64_t item = item_bytes(from->dtype);
  unsigned char* const to = copies->emplace_back(from->memory.size() + item).data() + item;
  std::copy(from->memory.begin(), from->memory.end(), to);
  memory->data = to;
}

void test_alignment() {
  for (int kinds = 0; kinds < 64; ++kinds) {
    Draw draw(kinds);
    Request request = make_request(kinds, {4200, 4096, 100}, false);
    request.per_tensor = false;
    request.k = {2000};
    request.score = ScoreKind::kProduct;
    request.nan = NanRule::kLargest;
    for (Item& item : request.items) {
      const int64_t numel = item.weight.numel();
      item.weight = {kDTypes[kinds % 4], {numel}, {1}, {}};
      item.score = {kDTypes[kinds / 4 % 4], {numel}, {1}, {}};
      fill(&draw, Flavour::kAnything, &item.weight);
      fill(&draw, Flavour::kAnything, &item.score);
    }
    place_ascending(&draw, false, &request);
    Outcome expected = expected_topk(&request);
    Call call(&draw, &request);
    std::deque<Dirty> copies;
    for (size_t i = 0; i < request.items.size(); ++i) {
      if (kinds & 16) misalign(&call.tensors[i].weight, &request.items[i].weight, &copies);
      if (kinds & 32) misalign(&call.tensors[i].score, &request.items[i].score, &copies);
    }
    selected(&request, &call, &expected, kinds);
  }
}

// The whole call, from the table to the weights, and the selection alone.
void test_whole(uint64_t seed, const std::vector<int64_t>& numels) {
  Draw draw = draw_beside(seed);
  Request request = make_request(seed, numels, false);
  place_ascending(&draw, draw.below(2) == 0, &request);
  Outcome expected = expected_topk(&request);
  Call call(&draw, &request);
  const Stages stages = selected(&request, &call, &expected, seed);
  const cuda::TopK topk = topk_of(request, &call);
  std::vector<uint32_t> bits(stages.own.table.tiles * cuda::kTileWords, 0xABABABABu);
  in_workspace(
      [&](void* workspace, size_t* bytes) {
        return topk_select(topk, workspace, bytes, bits.data(), call.stats.data(), call.device);
      },
      seed);
  expect_bits(call, bits.data(), expected, seed);
  for (int i = 0; i < call.count(); ++i) {
    equal(call.stats[i * kStatColumns], expected.stat(i, kStatSelected), "selected", seed);
  }
  perturb(request, &call, seed);
  expect_outcome(call, expected, seed);
}

// One NaN leaves the bits zero and the weights as they were.
void test_nan() {
  int64_t refused = 0;
  for (uint64_t seed = 0; seed < 6; ++seed) {
    std::vector<float> values = with_ties<float>(9000, {seed < 3 ? 0 : 2000, 9000});
    values[seed % 3 * 4499 + seed % 3 / 2] = std::nanf("");  // one in each tensor
    Request request = plain_request(values, DType::kFloat32, {4000, 4999, 1}, {3000});
    Outcome expected = expected_topk(&request);
    refused += expected.stat(seed % 3, kStatNan);
    Draw draw(seed);
    Call call(&draw, &request);
    const Stages stages = selected(&request, &call, &expected, seed);
    holds(stages.own.table.header->refused == 1, "refused", seed);
    perturb(request, &call, seed);
    expect_outcome(call, expected, seed);
  }
  equal(refused, 6, "refused calls");
}

void test_small(int rounds) {
  const std::vector<std::vector<int64_t>> lists = {
      {0},    {1},     {3},           {4095}, {4096}, {4097}, {5, 0, 4097, 3, 0}, {8192, 100, 9000},
      {9, 1}, {20000}, {300, 0, 4500}};
  for (int round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < lists.size(); ++i) test_whole(round * lists.size() + i, lists[i]);
  }
  test_cuts(false);
  test_cuts(true);
  test_nan();
  test_alignment();
  test_each_tensor(1, false, 1);
  test_each_tensor(2, true, 1);
}

void test_large() {
  test_ways<float>(DType::kFloat32, {1, 64}, 0, 1);
  test_ways<double>(DType::kFloat64, {2}, 1, 3);
  test_ways<BFloat16>(DType::kBFloat16, {2}, 2, 3);
  test_ways<Float16>(DType::kFloat16, {3}, 0, 2);
  test_missed();
  for (const int multiprocessors : {1, 3, 64}) {
    for (const bool tied : {false, true}) test_each_tensor(5 + tied, tied, multiprocessors);
  }
}

}  // namespace
}  // namespace fastunlearn::testing

// Arguments: rounds of small calls, and whether those of 300,000 elements run.
int main(int, char** arguments) {
  fastunlearn::testing::test_small(std::atoi(arguments[1]));
  if (std::atoi(arguments[2]) != 0) fastunlearn::testing::test_large();
  return fastunlearn::testing::finish();
}
