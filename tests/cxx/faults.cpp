// Calls that run out of memory: every allocation of a call fails in turn, once and for good. The
// call has to throw std::bad_alloc with every weight as it was, or to end whole.
//
// Each case runs in a child of its own, so that nothing is left over from an earlier call, and an
// abort is told from an exception. The parent makes no call.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/randomk.h"
#include "cpu/topk.h"

namespace {

std::atomic<bool> watching{false};
std::atomic<int64_t> allocations{0};
std::atomic<int64_t> greatest{0};    // bytes of one allocation
std::atomic<int64_t> first_to_fail;  // its number, from 1
bool lasting = false;                // whether all after it fail too

bool fails() {
  const int64_t number = ++allocations;
  if (number < first_to_fail || (number > first_to_fail && !lasting)) return false;
  // Time for the other threads to write what they are about to.
  if (number == first_to_fail) std::this_thread::sleep_for(std::chrono::milliseconds(3));
  return true;
}

}  // namespace

// None of these is inlined: gcc would then see new meet free, and warn.
__attribute__((noinline)) void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  if (watching) {
    int64_t before = greatest;
    while (before < static_cast<int64_t>(bytes) && !greatest.compare_exchange_weak(before, bytes)) {
    }
    if (fails()) return nullptr;
  }
  return std::malloc(bytes);
}
__attribute__((noinline)) void* operator new(size_t bytes) {
  void* const found = operator new(bytes, std::nothrow);
  if (found == nullptr) throw std::bad_alloc();
  return found;
}
__attribute__((noinline)) void operator delete(void* memory) noexcept { std::free(memory); }
__attribute__((noinline)) void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace fastunlearn::testing {
namespace {

constexpr int kThreads = 2;
constexpr int64_t kNone = INT64_MAX;
constexpr int64_t kMemory = 9'000'000;  // bytes of all weights and scores of a call, at most

// How a child ended.
enum Ending { kWhole, kThrown, kOther };

// Memory that a child shares with its parent.
struct Shared {
  std::atomic<int64_t> allocations, greatest;
  unsigned char memory[kMemory];
};

Shared* const shared = static_cast<Shared*>(
    mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));

using Call = std::function<void(int64_t* stats)>;

// Makes the call in a child whose allocation number `fail` fails; returns its wait status.
int run_child(const Call& call, int64_t fail, bool for_good) {
  const pid_t child = fork();
  if (child == 0) {
    std::vector<int64_t> stats(10 * kStatColumns);
    int ending = kWhole;
    first_to_fail = fail;
    lasting = for_good;
    watching = true;
    try {
      call(stats.data());
    } catch (const std::bad_alloc&) {
      ending = kThrown;
    } catch (...) {
      ending = kOther;
    }
    watching = false;
    shared->allocations = allocations.load();
    shared->greatest = greatest.load();
    _exit(ending);
  }
  int status = -1;
  waitpid(child, &status, 0);
  return status;
}

// Contiguous tensors in the shared memory, one after the other.
struct World {
  std::vector<Parameter> parameters;
  int64_t bytes = 0, elements = 0;

  TensorView tensor(DType dtype, int64_t numel) {
    const int64_t one = 1;
    const TensorView view(shared->memory + bytes, dtype, &numel, &one, 1);
    bytes += (numel * item_bytes(dtype) + 7) / 8 * 8;
    if (bytes > kMemory) std::abort();
    return view;
  }

  void add(const TensorView& weight, const TensorView& score) {
    const int64_t numel = weight.numel();
    parameters.push_back({weight, score, {elements, numel, numel, numel}});
    elements += numel;
  }

  void add(DType weight, int64_t numel) {
    const TensorView view = tensor(weight, numel);
    add(view, tensor(DType::kFloat32, numel));
  }
};

// Fails each allocation of a call in turn. `values`: what the memory holds before the call.
void check_call(const char* name, const World& world, const std::vector<unsigned char>& values,
                const Call& call) {
  const auto reset = [&] { std::memcpy(shared->memory, values.data(), values.size()); };
  const auto is = [&](const std::vector<unsigned char>& wanted) {
    return std::memcmp(shared->memory, wanted.data(), wanted.size()) == 0;
  };
  reset();
  equal(run_child(call, kNone, false), 0, name);
  const std::vector<unsigned char> whole(shared->memory, shared->memory + world.bytes);
  const int64_t count = shared->allocations;
  int64_t thrown = 0;
  for (const bool for_good : {false, true}) {
    for (int64_t fail = 1; fail <= count; ++fail) {
      reset();
      const int status = run_child(call, fail, for_good);
      holds(WIFEXITED(status), "no abort", fail);
      const int ending = WIFEXITED(status) ? WEXITSTATUS(status) : kOther;
      holds(ending == kThrown ? is(values) : ending == kWhole && is(whole), name, fail);
      thrown += ending == kThrown;
    }
  }
  std::printf("%s: %d allocations, %d calls that failed\n", name, static_cast<int>(count),
              static_cast<int>(thrown));
  holds(thrown > count, name);
}

// Values that differ from each other, or two of them; no noise makes them overflow.
std::vector<unsigned char> values_of(const World& world, bool ties) {
  std::vector<unsigned char> out(world.bytes);
  for (size_t i = 0; i + 4 <= out.size(); i += 4) {
    const uint32_t word = static_cast<uint32_t>(i) * 2654435761u;
    const uint32_t bits = ties ? 0x30003000u + (word >> 31) : (word & 0x0FFF0FFFu) | 0x30003000u;
    std::memcpy(&out[i], &bits, sizeof(bits));
  }
  return out;
}

const Change kChange{std::vector<double>(10, 0.01),
                     {5, 0},
                     NoiseKind::kNormal,
                     UpdateMode::kAdd,
                     Rounding::kNearest,
                     false};

Execution execution() { return {&kernels(highest_simd_level()), kThreads}; }

void check_topk(const char* name, World world, int64_t k, bool ties = false) {
  const TopK topk{world.parameters, {k}, false, ScoreKind::kPlain, NanRule::kError};
  check_call(name, world, values_of(world, ties),
             [&](int64_t* stats) { topk_perturb(topk, kChange, execution(), stats); });
}

void check_randomk(const char* name, World world, std::vector<int64_t> k, int64_t total) {
  const RandomK randomk{world.parameters, k, k.size() > 1, total, {1, 0}};
  check_call(name, world, values_of(world, false),
             [&](int64_t* stats) { randomk_perturb(randomk, kChange, execution(), stats); });
}

// Two threads read so many elements.
constexpr int64_t kNumel = 2 * kGrain;

World one_tensor(DType dtype) {
  World world;
  world.add(dtype, kNumel);
  return world;
}

// Scores in the memory of another weight, so that the choice is made in advance.
World aliased() {
  World world;
  const TensorView first = world.tensor(DType::kFloat32, kNumel / 2);
  const TensorView second = world.tensor(DType::kFloat32, kNumel / 2);
  world.add(first, second);
  world.add(second, first);
  return world;
}

// Random-k that goes to each element by itself reads no scores.
World many() {
  World world;
  for (const DType dtype : {DType::kFloat32, DType::kFloat16}) {
    const TensorView view = world.tensor(dtype, 1'100'000);
    world.add(view, view);
  }
  return world;
}

// A shard needs room for its own elements, not for what is selected elsewhere.
void check_room_of_a_shard() {
  World world;
  world.add(DType::kFloat32, 1000);
  const RandomK randomk{world.parameters, {1 << 30}, false, int64_t{1} << 40, {1, 0}};
  const int status = run_child(
      [&](int64_t* stats) { randomk_perturb(randomk, kChange, execution(), stats); }, kNone, false);
  equal(status, 0, "a shard that holds little of the index space");
  holds(shared->greatest < 1 << 18, "bytes at once, of a thread's room", shared->greatest);
}

}  // namespace
}  // namespace fastunlearn::testing

int main() {
  using namespace fastunlearn::testing;  // NOLINT: the checks below
  using fastunlearn::DType;
  alarm(120);  // a thread that waits for ever ends the program
  check_topk("Top-K with a journal", one_tensor(DType::kFloat32), kNumel / 32);
  check_topk("Top-K with a screen", one_tensor(DType::kFloat32), kNumel / 8 * 7);
  check_topk("Top-K among ties", one_tensor(DType::kFloat16), kNumel / 64, true);
  check_topk("Top-K, settled", aliased(), kNumel / 32);
  check_randomk("Random-k, streaming", one_tensor(DType::kFloat32), {kNumel / 32}, kNumel);
  check_randomk("Random-k, one by one", many(), {9000}, 9'000'000);
  check_randomk("Random-k in each tensor", many(), {4250, 4250}, 0);
  check_room_of_a_shard();
  return finish();
}
