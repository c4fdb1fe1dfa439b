// Every kernel at a small size under many schedules: the same bits in each. A block has several
// tiles and several tensors, so that what it shares is used again.
#include <cmath>
#include <cstdlib>
#include <functional>

#include "calls.h"
#include "cuda/noise.h"
#include "cuda/randomk.h"
#include "selection.h"

namespace fastunlearn::testing {
namespace {

struct Small {
  const char* name;
  std::function<void(uint64_t seed)> run;
};

// What differs from call to call.
struct Made {
  Request request;
  Outcome expected;
};

// A call on fresh weights, on a grid of eight blocks.
template <class Body>
Small small(const char* name, const Made& made, const Body& body) {
  return {name, [=](uint64_t seed) {
            Request request = made.request;
            Draw draw(1);
            Call call(&draw, &request);
            call.device.multiprocessors = 1;
            simt::set_seed(seed);
            body(&request, &call, seed);
            expect_outcome(call, made.expected, seed);
          }};
}

// Makes fp16 weights and a scale that overflows some of them.
void make_great(Request* request) {
  for (Item& item : request->items) item.weight.dtype = DType::kFloat16;
  std::fill(request->change.scale.begin(), request->change.scale.end(), 2e4);
}

Made made_topk(Request request, const Way& way, const char* name) {
  Draw draw(1);
  Call call(&draw, &request);
  Stages stages(request, &call.tensors);
  stages.run(call.device);
  bool met = false;
  for (int i = 0; i < stages.own.num_problems; ++i) {
    const Way found = stages.way(i);
    met = met || (found.searched == way.searched && found.reread == way.reread &&
                  found.overflown == way.overflown && found.missed == way.missed);
  }
  holds(met, name);
  const Outcome expected = expected_topk(&request);
  return {request, expected};
}

Small small_topk(const char* name, const Request& request, const Way& way) {
  return small(name, made_topk(request, way, name),
               [](Request* own, Call* call, uint64_t seed) { perturb(*own, call, seed); });
}

// Eight small tensors, then two that are sampled: a block has one of each kind.
Request each_tensor(bool tied) {
  std::vector<int64_t> numels(10, 40), k(10, 17);
  numels[8] = numels[9] = 4200;
  k[8] = 2000;
  k[9] = 4100;
  const int64_t total = 8 * 40 + 2 * 4200;
  const Ties ties = tied ? Ties{300, total} : Ties{0, 0};
  return plain_request(with_ties<float>(total, ties), DType::kFloat32, numels, k);
}

// Ten tensors together.
Request together(Ties ties, int64_t k) {
  const std::vector<int64_t> numels(10, 432);
  return plain_request(with_ties<float>(4320, ties), DType::kFloat32, numels, {k});
}

// The write by itself of what a Top-K selects, screened instead of journaled.
Small small_write(const char* name, const Request& request) {
  Made made = {request, {}};
  made.expected = expected_topk(&made.request);
  const Outcome& expected = made.expected;
  return small(name, made, [expected](Request* own, Call* call, uint64_t seed) {
    const int64_t tiles = cuda::number_tiles(call->tensors.data(), call->count());
    std::vector<uint32_t> bits(tiles * cuda::kTileWords);
    for (int i = 0; i < call->count(); ++i) {
      const Bytes& packed = expected.packed[i];
      std::memcpy(bits.data() + call->tensors[i].first_tile * cuda::kTileWords, packed.data(),
                  packed.size());
      for (const Stat column : {kStatThreshold, kStatTies, kStatTiesTaken}) {
        call->stats[i * kStatColumns + column] = expected.stats[i * kStatColumns + column];
      }
    }
    const cuda::Header header = Written(call, bits, own->k[0], tiles).run(false, true);
    holds(header.suspicious != 0, "rehearsed", seed);
  });
}

Small small_randomk(const char* name, Request request) {
  for (Item& item : request.items) std::fill_n(item.weight.memory.begin(), 100, 0x3F);
  Made made = {request, {}};
  made.expected = expected_randomk(&made.request);
  return small(name, made, [](Request* own, Call* call, uint64_t seed) {
    const cuda::RandomK randomk{call->tensors.data(), call->count(), own->k[0], own->per_tensor,
                                own->total};
    in_workspace(
        [&](void* workspace, size_t* bytes) {
          return randomk_perturb(randomk, call->change, call->scale, call->rng, workspace, bytes,
                                 call->stats.data(), call->device);
        },
        seed);
  });
}

Small small_rms() {
  Request request = together({0, 0}, 0);
  for (Item& item : request.items) item.weight = item.score;
  Draw draw(1);
  Call call(&draw, &request);
  const auto run = [](Call* own, uint64_t seed) {
    std::vector<double> out(own->count());
    in_workspace(
        [&](void* workspace, size_t* bytes) {
          return rms(own->tensors.data(), own->count(), workspace, bytes, out.data(), own->device);
        },
        seed);
    return out;
  };
  const std::vector<double> expected = run(&call, 0);  // write_test.cpp tells whether it is right
  return {"rms", [=](uint64_t seed) {
            Request own = request;
            Draw unused(1);
            Call again(&unused, &own);
            simt::set_seed(seed);
            holds(run(&again, seed) == expected, "rms", seed);
          }};
}

Small small_noise() {
  return {"noise", [](uint64_t seed) {
            simt::set_seed(seed);
            std::vector<int64_t> index(600);
            std::iota(index.begin(), index.end(), int64_t{1} << 40);
            std::vector<float> z(index.size());
            const Rng rng = {seed, 3};
            cuda::noise_at(index.data(), 600, NoiseKind::kNormal, {nullptr, rng}, z.data(),
                           {1, nullptr});
            for (int i = 0; i < 600; ++i) {
              const float wanted =
                  noise_of(NoiseKind::kNormal, word_of(index[i], kStreamNoise, rng));
              equal(bits_of(z[i]), bits_of(wanted), "noise", seed);
            }
          }};
}

std::vector<Small> all_calls() {
  Request overflow = together({0, 0}, 2500), few = together({0, 0}, 60);
  make_great(&overflow);
  make_great(&few);
  return {
      small_topk("search of candidates", together({0, 0}, 2500), {true, false, false, false}),
      small_topk("ties among candidates", together({1000, 1100}, 1050),
                 {true, false, false, false}),
      small_topk("all alike", together({0, 4320}, 1234), {false, true, true, false}),
      small_topk("many ties above", together({100, 4000}, 4010), {true, true, true, false}),
      small_topk("each tensor", each_tensor(false), {true, false, false, false}),
      small_topk("each tensor, with ties", each_tensor(true), {true, true, true, false}),
      small_topk("overflow and journal", overflow, {true, false, false, false}),
      small_write("screen and rehearsal", overflow),
      small_randomk("few at random", together({0, 0}, 60)),
      small_randomk("few at random, overflow", few),
      small_randomk("many at random", together({0, 0}, 2500)),
      small_rms(),
      small_noise(),
  };
}

// Stops at the first call that fails.
void test_schedules(int begin, int end) {
  const std::vector<Small> calls = all_calls();
  for (int seed = begin; seed < end; ++seed) {
    simt::set_resident(seed % 2 == 0 ? 1 : 3);
    for (const Small& call : calls) {
      std::printf("%s, seed %d\n", call.name, seed);
      std::fflush(stdout);
      try {
        call.run(seed);
      } catch (const simt::Error&) {  // the harness has said what
        ++failures;
      }
      if (failures > 0) return;
    }
  }
}

}  // namespace
}  // namespace fastunlearn::testing

// Arguments: the first seed, and one past the last.
int main(int, char** arguments) {
  fastunlearn::testing::test_schedules(std::atoi(arguments[1]), std::atoi(arguments[2]));
  return fastunlearn::testing::finish();
}
