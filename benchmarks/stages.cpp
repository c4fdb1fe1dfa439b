// Where the time of the compiled CPU core goes: its kernels, and the stages of one Top-K.
//
//   g++ -O3 -std=c++17 -ffp-contract=off -pthread -Icsrc -o stages
//       benchmarks/stages.cpp csrc/cpu/*.cpp      (one line)
//   ./stages [threads]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "core/noise.h"
#include "cpu/bracket.h"
#include "cpu/read.h"
#include "cpu/topk.h"

namespace fastunlearn {
namespace {

double milliseconds() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double, std::milli>(Clock::now().time_since_epoch()).count();
}

// Least time of a call in ns for each of `items`, from data in the first-level cache.
template <class Body>
void time_kernel(const char* name, int items, const Body& body) {
  double best = 1e9;
  for (int repeat = 0; repeat < 20; ++repeat) {
    const double start = milliseconds();
    for (int i = 0; i < 100; ++i) body();
    best = std::min(best, (milliseconds() - start) / 100);
  }
  std::printf("  %-22s %7.3f ns\n", name, best * 1e6 / items);
}

void time_kernels(SimdLevel level) {
  const Kernels& k = kernels(level);
  std::printf("%s\n", simd_name(level));
  const Rng rng{1, 2};
  std::vector<uint32_t> words(kBlock);
  std::vector<float> z(kBlock), w(kNoiseBatch);
  std::vector<uint64_t> index(kNoiseBatch), sure(64), maybe(64), image(kNoiseBatch);
  std::vector<uint16_t> places(kBlock + kExpandSlack);
  k.words_from(0, kBlock / 4, rng, kStreamNoise, words.data());
  for (int i = 0; i < kBlock; ++i) z[i] = normal<ScalarLanes>(words[i]);
  for (int i = 0; i < kNoiseBatch; ++i) index[i] = words[i];
  const auto key = [](float x) { return ScalarLanes::bits(x); };
  const Bracket top{key(2.5f), key(2.6f)};
  time_kernel("scan, fp32", kBlock,
              [&] { k.scan_f32(z.data(), kBlock, top, sure.data(), maybe.data()); });
  time_kernel("list places of 1 %", kBlock, [&] { k.expand(maybe.data(), 64, 0, places.data()); });
  time_kernel("words, one by one", kNoiseBatch,
              [&] { k.words_at(index.data(), kNoiseBatch, rng, words.data()); });
  time_kernel("words, in a row", kNoiseBatch,
              [&] { k.words_from(9, kNoiseBatch / 4, rng, kStreamNoise, words.data()); });
  time_kernel("normal", kNoiseBatch,
              [&] { k.noise(NoiseKind::kNormal, words.data(), kNoiseBatch, z.data()); });
  const std::vector<uint64_t> half(kNoiseBatch / 64, 0x5555555555555555u);
  Tally tally;
  time_kernel("update half of a row", kNoiseBatch, [&] {
    k.update_f32(w.data(), z.data(), half.data(), kNoiseBatch, {0.1, UpdateMode::kAdd}, true,
                 &tally);
  });
  const auto permutation = Permutation::make(100'000'000, rng, 0);
  time_kernel("permute", kNoiseBatch,
              [&] { k.permute(permutation, 7, kNoiseBatch, image.data()); });
}

void time_stages(const std::vector<Parameter>& parameters, double share, int threads) {
  const TensorView& score = parameters[0].score;
  const int64_t k = static_cast<int64_t>(share * static_cast<double>(score.numel()));
  const Execution execution{&kernels(highest_simd_level()), threads};
  const Change change{{0.1}, {5, 3}, NoiseKind::kNormal, UpdateMode::kAdd, false};
  std::vector<double> best(5, 1e9);
  for (int repeat = 0; repeat < 7; ++repeat) {
    std::vector<double> times{milliseconds()};
    stream_read({{score.data(), static_cast<size_t>(score.numel()) * 4}}, threads);
    times.push_back(milliseconds());
    const Chunks chunks(parameters);
    const KeyReader keys(parameters, ScoreKind::kPlain, NanRule::kError, execution.kernels);
    Records records(chunks.size(), threads);
    const Bracket bracket = find_bracket(keys, chunks, 0, chunks.size(), k, execution);
    times.push_back(milliseconds());
    stream(keys, chunks, 0, chunks.size(), bracket, execution, &records);
    times.push_back(milliseconds());
    const Problem problem{0, chunks.size(), k};
    const Cut cut = find_cut(keys, parameters, chunks, problem, bracket, execution, records);
    times.push_back(milliseconds());
    CutChoice choice(keys, parameters, chunks, records, *execution.kernels);
    choice.set(0, cut, bracket);
    std::vector<int64_t> stats(kStatColumns);
    perturb(parameters, chunks, choice, change, execution, stats.data());
    times.push_back(milliseconds());
    for (int i = 0; i < 5; ++i) best[i] = std::min(best[i], times[i + 1] - times[i]);
  }
  std::printf("K = %4.1f %%: read floor %.1f ms; bracket %.1f, stream %.1f, cut %.1f, write %.1f\n",
              100 * share, best[0], best[1], best[2], best[3], best[4]);
}

void run(int threads) {
  for (const SimdLevel level : kSimdLevels) {
    if (simd_supported(level)) time_kernels(level);
  }
  const int64_t n = 100'000'000, one = 1;
  std::vector<float> weight(n), score(n);
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t word = fmix32<ScalarLanes>(static_cast<uint32_t>(i));
    score[i] = weight[i] = normal<ScalarLanes>(word);
  }
  const TensorView w(weight.data(), DType::kFloat32, &n, &one, 1);
  const TensorView s(score.data(), DType::kFloat32, &n, &one, 1);
  for (const double share : {0.001, 0.01, 0.1, 0.5}) {
    time_stages({{w, s, {0, n, n, n}}}, share, threads);
  }
}

}  // namespace
}  // namespace fastunlearn

int main(int argc, char** argv) { fastunlearn::run(argc > 1 ? std::atoi(argv[1]) : 2); }
