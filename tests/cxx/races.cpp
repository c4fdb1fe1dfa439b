// Scores that somebody changes during a call: which elements are chosen is then anybody's guess,
// but no memory other than the weights may be written, and a refusal still takes everything back.
//
// A race is played step by step: the stages of a Top-K run one after the other, and the scores
// change between them.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "check.h"
#include "cpu/bracket.h"
#include "cpu/topk.h"

namespace fastunlearn::testing {
namespace {

constexpr int64_t kChunks = 3;
constexpr int64_t kNumel = kChunks * kChunk;
constexpr int64_t kTies = 3000;  // in each chunk: more than a record lists

// One tensor and what was read of it.
struct World {
  World()
      : weights(kNumel, 1.0f),
        scores(kNumel, 0.0f),
        parameters{{view(&weights), view(&scores), {0, kNumel, kNumel, kNumel}}},
        chunks(parameters),
        keys(parameters, ScoreKind::kPlain, NanRule::kError, execution.kernels),
        records(chunks.size(), execution.threads) {}

  static TensorView view(std::vector<float>* values) {
    const int64_t numel = kNumel, one = 1;
    return {values->data(), DType::kFloat32, &numel, &one, 1};
  }

  void read(Bracket between) {
    bracket = between;
    stream(keys, chunks, 0, chunks.size(), bracket, execution, &records);
  }

  Cut cut(int64_t k) const {
    return find_cut(keys, parameters, chunks, {0, chunks.size(), k}, bracket, execution, records);
  }

  Execution execution{&kernels(highest_simd_level()), 1};
  std::vector<float> weights, scores;
  std::vector<Parameter> parameters;
  Chunks chunks;
  KeyReader keys;
  Records records;
  Bracket bracket{};
};

// Chunks too full of ties to be listed are read again for the choice: all their scores are great
// by then, and the journal has room for the ties alone.
void check_choice(double scale) {
  World world;
  for (int64_t i = 0; i < kNumel; ++i) world.scores[i] = i % kChunk < kTies ? 1.0f : 0.0f;
  const uint32_t tie = ScalarLanes::bits(1.0f);
  world.read({tie, tie});
  const int64_t k = kChunks * kTies / 2;
  CutChoice choice(world.keys, world.parameters, world.chunks, world.records,
                   *world.execution.kernels);
  choice.set(0, world.cut(k), world.bracket);
  std::fill(world.scores.begin(), world.scores.end(), 2.0f);
  const Change change{{scale}, {1, 0}, NoiseKind::kUniform, UpdateMode::kAdd, Rounding::kNearest,
                      false};
  std::vector<int64_t> stats(kStatColumns);
  perturb(world.parameters, world.chunks, choice, change, world.execution, stats.data());
  const auto same = std::count(world.weights.begin(), world.weights.end(), 1.0f);
  holds(stats[kStatSelected] <= kChunks * kTies, "no more than there is room for");
  if (stats[kStatOverflow] != 0) {
    equal(same, kNumel, "everything is taken back");
  } else {
    equal(kNumel - same + stats[kStatUnchanged], stats[kStatSelected], "written");
  }
  holds((stats[kStatOverflow] != 0) == (scale > 1), "overflow");
}

// The records count more keys than they hold: other keys were met when they were counted.
void check_cut(int64_t kept) {
  World world;
  for (int64_t i = 0; i < kNumel; ++i) world.scores[i] = static_cast<float>(i);
  const int64_t k = kNumel / 2;
  world.read(find_bracket(world.keys, world.chunks, 0, kChunks, k, world.execution));
  for (int64_t i = 0; i < kChunks; ++i) {
    ChunkRecord& record = world.records[i];
    record.num_keys = std::min<int>(record.num_keys, static_cast<int>(kept));
  }
  const Cut cut = world.cut(k);
  holds(cut.recorded, "the bracket holds the threshold", kept);
  holds(world.bracket.lo <= cut.key && cut.key <= world.bracket.hi, "a key of the bracket", kept);
}

}  // namespace
}  // namespace fastunlearn::testing

int main() {
  using namespace fastunlearn::testing;  // NOLINT: the checks below
  for (const double scale : {0.1, 3e38}) check_choice(scale);
  for (const int64_t kept : {0, 1, 10, 100, 1000}) check_cut(kept);
  return finish();
}
