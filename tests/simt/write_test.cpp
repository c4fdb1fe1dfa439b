// The kernels that write, Random-k, noise and root mean squares against plain loops, under shuffled
// schedules of the harness.
#include "cuda/write.h"

#include <cmath>
#include <cstdlib>
#include <limits>

#include "calls.h"
#include "core/divide.h"
#include "cuda/noise.h"
#include "cuda/randomk.h"

namespace fastunlearn::testing {
namespace {

// Selects each element with some odds and notes it in the bitmap and in what is expected.
int64_t select_some(Draw* draw, const Call& call, std::vector<uint32_t>* bits, Outcome* expected) {
  constexpr uint32_t kOdds[] = {0, 1, 30, 240, 260, 700, 1000};  // of 1,000
  int64_t selected = 0;
  const uint32_t common = kOdds[draw->below(7)];
  for (int i = 0; i < call.count(); ++i) {
    const uint32_t odds = draw->below(2) == 0 ? common : kOdds[draw->below(7)];
    const cuda::Tensor& tensor = call.tensors[i];
    for (int64_t local = 0; local < tensor.segment.numel; ++local) {
      if (draw->below(1000) >= odds) continue;
      uint32_t* const own = bits->data() + tensor.first_tile * cuda::kTileWords;
      own[local / 32] |= uint32_t{1} << local % 32;
      take(call.from, {0, tensor.segment.to_global(local), i, local}, expected);
      ++selected;
    }
  }
  return selected;
}

void test_write(uint64_t seed, const std::vector<int64_t>& numels) {
  Draw draw = draw_beside(seed);
  Request request = make_request(seed, numels, false);
  place_ascending(&draw, true, &request);
  if (draw.below(10) == 0) request.change.scale[0] = std::numeric_limits<double>::quiet_NaN();
  Call call(&draw, &request);
  const int64_t tiles = cuda::number_tiles(call.tensors.data(), call.count());
  std::vector<uint32_t> bits(tiles * cuda::kTileWords);
  Outcome expected = untouched(request);
  const int64_t selected = select_some(&draw, call, &bits, &expected);
  const bool refused = draw.below(8) == 0;
  if (refused) expected = untouched(request);
  refuse_overflow(request, &expected);
  Written(&call, bits, selected, tiles).run(refused, draw.below(2) == 0);
  expect_outcome(call, expected, seed);
}

// Weights far below the limit pass the screen; a great one and a scale that is NaN do not.
void test_screen() {
  const auto suspicious = [](float weight, double scale, bool selected) {
    Draw draw(1);
    Request request = make_request(1, {5000}, false);
    Item& item = request.items[0];
    item.weight = {DType::kFloat32, {5000}, {1}, Bytes(20000)};
    item.segment = {0, 5000, 5000, 5000};
    std::memcpy(item.weight.address(4500), &weight, sizeof(weight));
    request.change = {{scale}, {1, 2}, NoiseKind::kNormal, UpdateMode::kAdd, Rounding::kNearest,
                      false};
    Call call(&draw, &request);
    cuda::number_tiles(call.tensors.data(), 1);
    std::vector<uint32_t> bits(2 * cuda::kTileWords);
    bits[0] = 1;
    if (selected) bits[4500 / 32] = uint32_t{1} << 4500 % 32;
    return Written(&call, bits, 2, 2).run(false, true).suspicious != 0;
  };
  holds(!suspicious(1.0f, 0.1, true), "small weights pass");
  holds(!suspicious(-1.6e38f, 0.1, true), "a weight below the limit passes");
  holds(suspicious(-1.7e38f, 0.1, true), "a great weight does not");
  holds(!suspicious(1.7e38f, 0.1, false), "one that is not selected does");
  holds(suspicious(1.0f, 2e37, true), "a great scale does not");
  holds(suspicious(1.0f, std::numeric_limits<double>::quiet_NaN(), true), "NaN does not");
}

void test_room() {
  const auto journaled = [](int64_t numel, int64_t selected, UpdateMode mode, bool allowed) {
    const Dirty memory(1 << 24);
    cuda::Workspace workspace(memory.data());
    const cuda::Change change = {NoiseKind::kNormal, mode, Rounding::kNearest, allowed};
    return take_write_room(&workspace, 1, numel, selected, 4, change).journal != nullptr;
  };
  holds(journaled(1 << 20, 1 << 18, UpdateMode::kAdd, false), "1 MiB is kept");
  holds(!journaled(1 << 20, (1 << 18) + 1, UpdateMode::kAdd, false), "more is not");
  holds(journaled(1 << 27, 1 << 20, UpdateMode::kReplace, false), "a share of many is");
  holds(!journaled(1 << 20, 1, UpdateMode::kAdd, true), "nothing where overflow is allowed");
  holds(!journaled(1 << 20, 1, UpdateMode::kZero, false), "nothing where none can be");
}

void test_randomk(uint64_t seed, const std::vector<int64_t>& numels) {
  Draw draw = draw_beside(seed);
  Request request = make_request(seed, numels, true);
  place_ascending(&draw, draw.below(2) == 0, &request);
  if (!request.per_tensor && request.total > 1 << 20) request.total = request.items[0].segment.base;
  const int64_t few = std::max<int64_t>(request.numel() / 64, 1);
  if (draw.below(2) == 0) {
    for (int64_t& k : request.k) k %= few;
  }
  Outcome expected = expected_randomk(&request);
  Call call(&draw, &request);
  const cuda::RandomK randomk{call.tensors.data(), call.count(),
                              request.per_tensor ? -1 : request.k[0], request.per_tensor,
                              request.total};
  std::fill(call.stats.begin(), call.stats.end(), -77);
  size_t bytes = 0;
  const auto perturb = [&](void* workspace) {
    return randomk_perturb(randomk, call.change, call.scale, call.rng, workspace, &bytes,
                           call.stats.data(), call.device);
  };
  perturb(nullptr);
  const Dirty memory(bytes);
  equal(perturb(memory.data()), cudaSuccess, "status", seed);
  expect_outcome(call, expected, seed);

  const int64_t tiles = cuda::number_tiles(call.tensors.data(), call.count());
  std::vector<uint32_t> bits(tiles * cuda::kTileWords, 0xABABABABu);
  const auto select = [&](void* workspace) {
    return randomk_select(randomk, call.rng, workspace, &bytes, bits.data(), call.stats.data(),
                          call.device);
  };
  select(nullptr);
  const Dirty other(bytes);
  equal(select(other.data()), cudaSuccess, "status", seed);
  expect_bits(call, bits.data(), expected, seed);
  for (size_t i = 0; i < numels.size(); ++i) {
    expected.stat(i, kStatOverflow) = expected.stat(i, kStatUnchanged) = 0;
  }
  expected.memory.clear();
  for (const Item& item : request.items) expected.memory.push_back(item.weight.memory);
  expect_outcome(call, expected, seed);
}

void test_noise() {
  Draw draw(5);
  for (const int64_t count : {0, 1, 300, 5000}) {
    std::vector<int64_t> index;
    for (int64_t i = 0; i < count; ++i) {
      index.push_back(int64_t{draw.word()} << (draw.below(2) * 20) | draw.below(4));
    }
    const Rng rng = {uint64_t{draw.word()} << 32 | draw.word(), draw.word()};
    for (const auto kind : {NoiseKind::kNormal, NoiseKind::kUniform, NoiseKind::kLaplace}) {
      std::vector<float> z(count);
      cuda::noise_at(index.data(), count, kind, {nullptr, rng}, z.data(), {2, nullptr});
      for (int64_t i = 0; i < count; ++i) {
        equal(bits_of(z[i]), bits_of(noise_of(kind, word_of(index[i], kStreamNoise, rng))), "noise",
              i);
      }
    }
  }
}

typedef __int128 Wide;

// The fp64 number nearest to sum / count, even where two are: tried by exact products.
double nearest_quotient(Wide sum, int64_t count) {
  const double about = static_cast<double>(static_cast<long double>(sum) / count);
  double best = 0;
  Wide least = -1;
  for (const double x : {about, std::nextafter(about, 0.0), std::nextafter(about, 1e30)}) {
    constexpr int kShift = 30;  // x is at least 2^25, so that this makes it an integer
    const Wide error = (sum << kShift) - static_cast<Wide>(std::ldexp(x, kShift)) * count;
    const Wide size = error < 0 ? -error : error;
    if (least < 0 || size < least || (size == least && bits_of(x) % 2 == 0)) {
      least = size;
      best = x;
    }
  }
  return best;
}

double expected_rms(Tensor* tensor) {
  float greatest = 0;
  bool nan = false;
  const int64_t numel = tensor->numel();
  for (int64_t i = 0; i < numel; ++i) {
    const float x = std::fabs(tensor->fp32(i));
    nan = nan || std::isnan(x);
    greatest = std::max(greatest, std::isnan(x) ? 0 : x);
  }
  if (nan) return std::numeric_limits<double>::quiet_NaN();
  if (greatest == 0 || std::isinf(greatest)) return greatest;
  int exponent;
  std::frexp(greatest, &exponent);
  Wide sum = 0;
  for (int64_t i = 0; i < numel; ++i) {
    const double scaled = std::ldexp(std::fabs(double{tensor->fp32(i)}), 30 - exponent);
    const auto rounded = static_cast<int64_t>(std::nearbyint(scaled));
    sum += static_cast<Wide>(rounded) * rounded;
  }
  return std::ldexp(std::sqrt(nearest_quotient(sum, numel)), exponent - 30);
}

void test_rms(uint64_t seed, const std::vector<int64_t>& numels) {
  Draw draw(seed);
  Request request = make_request(seed, numels, true);
  Call call(&draw, &request);
  const auto run = [&](void* workspace, size_t* bytes, double* out) {
    return rms(call.tensors.data(), call.count(), workspace, bytes, out, call.device);
  };
  size_t bytes = 0;
  run(nullptr, &bytes, nullptr);
  const Dirty memory(bytes);
  std::vector<double> out(numels.size(), 77);
  equal(run(memory.data(), &bytes, out.data()), cudaSuccess, "status", seed);
  for (size_t i = 0; i < numels.size(); ++i) {
    equal(bits_of(out[i]), bits_of(expected_rms(&request.items[i].weight)), "rms", seed);
  }
}

// Mean squares that lie just above the middle of two fp64 numbers, the lower of which is even.
void test_rms_beside_ties() {
  constexpr int kCount = 41;
  Draw draw(11);
  std::vector<std::vector<float>> found;
  while (found.size() < 20) {
    std::vector<float> values(kCount);
    uint64_t high = 0, low = 0;
    for (float& x : values) {
      // 24 bits each: most magnitudes great, a few small enough to be odd after scaling.
      const uint32_t great = (draw.word() >> 2 | 1u << 29) & ~63u;
      const uint32_t scaled = &x - values.data() < 3 ? draw.word() >> 8 : great;
      x = std::ldexp(static_cast<float>(scaled), -30);
      high += (uint64_t{scaled} * scaled) >> 32;
      low += uint64_t{scaled} * scaled & 0xFFFFFFFFu;
    }
    const Wide sum = (static_cast<Wide>(high) << 32) + low;
    const auto whole = static_cast<uint64_t>(sum / kCount);
    const int spare = bit_length(whole) - 53;
    const bool even = (whole >> spare) % 2 == 0;
    const bool tie = (whole & ((uint64_t{1} << spare) - 1)) == uint64_t{1} << (spare - 1);
    const auto rest = static_cast<int>(sum % kCount);
    if (even && tie && (rest == 1 || rest == 2)) found.push_back(values);
  }
  for (std::vector<float>& values : found) {
    Tensor tensor{DType::kFloat32, {kCount}, {1}, Bytes(kCount * sizeof(float))};
    std::memcpy(tensor.memory.data(), values.data(), tensor.memory.size());
    Item item{tensor, tensor, {0, kCount, kCount, kCount}};
    cuda::Tensor own = device_tensor(&item, 0, 0);
    size_t bytes = 0;
    double out = 0;
    cuda::rms(&own, 1, nullptr, &bytes, &out, {1, nullptr});
    const Dirty memory(bytes);
    cuda::rms(&own, 1, memory.data(), &bytes, &out, {1, nullptr});
    equal(bits_of(out), bits_of(expected_rms(&tensor)), "rms beside a tie");
  }
}

void test_divide() {
  Draw draw(3);
  for (int i = 0; i < 2000; ++i) {
    const int64_t a =
        static_cast<int64_t>(uint64_t{draw.word()} << 31 | draw.word()) >> draw.below(62);
    const int64_t b = 1 + (static_cast<int64_t>(uint64_t{draw.word()} << 31) >> draw.below(62));
    equal(divide_long(a, b), a / b, "quotient", i);
  }
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  equal(divide_long(kMost, 1), kMost, "greatest by one");
  equal(divide_long(kMost, kMost), 1, "greatest by itself");
}

void test_all(int rounds) {
  std::vector<std::vector<int64_t>> lists = {
      {0}, {1}, {3}, {4095}, {4096}, {4097}, {10000}, {5, 0, 4097, 3, 0}, {8192, 100, 0, 9000}};
  lists.emplace_back(300, 3);    // more than one slice of the table
  lists.emplace_back(1100, 10);  // more than a block counts
  for (int round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < lists.size(); ++i) {
      const uint64_t seed = round * lists.size() + i;
      test_write(seed, lists[i]);
      test_randomk(seed, lists[i]);
      if (round == 0) test_rms(seed, lists[i]);
    }
  }
  for (int i = 0; i < 20 * rounds; ++i) test_randomk(1000 + i, {50, 70, 3, 60});
  test_rms_beside_ties();
  test_screen();
  test_room();
  test_noise();
  test_divide();
}

}  // namespace
}  // namespace fastunlearn::testing

int main(int, char** arguments) {
  fastunlearn::testing::test_all(std::atoi(arguments[1]));
  return fastunlearn::testing::finish();
}
