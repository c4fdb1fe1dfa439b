// The executor: blocks, the turns of their threads, and what barriers and warps exchange.
#include "simt.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>
#include <vector>

#include "shared_memory.h"
#include "warp.h"

namespace simt {

uint3 thread_index;
uint3 block_index;
dim3 block_size;
dim3 grid_size;

namespace {

constexpr int kMaxThreads = 1024;
// Threads that take more turns than this without a barrier passed or an end reached wait for
// something that does not come.
constexpr int64_t kMaxTurns = int64_t{1} << 24;
// Turns of a resident block before another may go on: at most so many.
constexpr int kMaxStretch = 64;

uint64_t from_environment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 0);
}

uint64_t seed = from_environment("SIMT_SEED", 0);
int resident = std::max(1, static_cast<int>(from_environment("SIMT_RESIDENT", 1)));
int switching = static_cast<int>(from_environment("SIMT_SWITCH", 4));
uint64_t launches = 0;  // since the seed was set
uint64_t turns_given = 0;

// SplitMix64.
struct Random {
  uint64_t state;

  uint64_t next() {
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
  }

  // A number in [0, bound).
  uint32_t below(uint32_t bound) {
    return static_cast<uint32_t>((next() >> 32) * uint64_t{bound} >> 32);
  }
};

Random rng{0};

template <class I>
void shuffle(I begin, I end) {
  for (auto n = end - begin; n > 1; --n) std::swap(begin[n - 1], begin[rng.below(n)]);
}

// One block that runs: its threads, and which of them may go on.
class Block {
 public:
  Block(int slot, int threads, const SharedMemory& shared)
      : first_fiber_(slot * kMaxThreads), threads_(threads), shared_(shared) {}

  // Takes up block `index` of the grid, from its beginning.
  void begin(unsigned index);
  // Gives turns until the block ends or has had `most`; true if it has ended.
  bool go_on(int64_t most);

  // Below: called by the thread whose turn it is.
  uint64_t wait_for_block(const Call& call);
  uint64_t wait_for_warp(const Call& call);
  void pass();
  [[noreturn]] void fail(const Call& call, const std::string& reason);

  // To be the block whose arrays are in the thread-local variables, and to be it no longer.
  void load() {
    shared_.restore(image_);
    block_index.x = index_;
  }
  void unload() { shared_.save(&image_); }

 private:
  static void run_thread();
  void give_turn();
  bool release_barrier();
  void complete(unsigned mask, int warp);
  void make_ready(const int* begin, const int* end);
  [[noreturn]] void report(int thread, const Call& call, const std::string& reason) const;
  [[noreturn]] void report_stuck(int thread) const;
  Thread& self() { return threads_[thread_index.x]; }

  int first_fiber_;
  unsigned index_ = 0;
  std::vector<Thread> threads_;
  std::vector<unsigned> in_warp_;  // for each warp, the lanes that wait in an operation of it
  std::vector<int> ready_;
  // Half of the blocks let a thread that was just released go first, so that one warp runs far
  // ahead of the others; the other half choose any.
  bool eager_ = false;
  int64_t turns_ = 0;    // since the last barrier or end
  std::string failure_;  // of the thread whose turn it is
  Call failed_{};
  std::vector<char> image_;
  const SharedMemory& shared_;
};

const std::function<void()>* kernel = nullptr;  // of the launch that runs
Block* current = nullptr;                       // whose turn it is

// Fibers are made when first needed and kept for good.
Fiber* fiber(size_t number) {
  static std::deque<std::unique_ptr<Fiber>> all;
  while (all.size() <= number) all.push_back(nullptr);
  if (all[number] == nullptr) all[number] = std::make_unique<Fiber>();
  return all[number].get();
}

void Block::begin(unsigned index) {
  index_ = index;
  turns_ = 0;
  eager_ = rng.below(2) == 0;
  image_ = shared_.poison();
  in_warp_.assign((threads_.size() + kWarp - 1) / kWarp, 0);
  ready_.resize(threads_.size());
  std::iota(ready_.begin(), ready_.end(), 0);
  shuffle(ready_.begin(), ready_.end());
  for (size_t i = 0; i < threads_.size(); ++i) {
    threads_[i] = {fiber(first_fiber_ + i), State::kReady, {}, 0};
    threads_[i].fiber->start(&Block::run_thread);
  }
}

void Block::run_thread() {
  current->self().fiber->entered();
  (*kernel)();
  current->self().state = State::kEnded;
  current->turns_ = 0;
  current->self().fiber->leave(true);
}

bool Block::go_on(int64_t most) {
  for (; most > 0; --most) {
    if (ready_.empty() && !release_barrier()) return true;
    give_turn();
  }
  return false;
}

void Block::give_turn() {
  if (!eager_) std::swap(ready_[rng.below(ready_.size())], ready_.back());
  const int thread = ready_.back();
  ready_.pop_back();
  if (++turns_ > kMaxTurns) {
    throw Error("block " + std::to_string(index_) + ", thread " + std::to_string(thread) +
                ": took turns without end, waiting for what does not come");
  }
  ++turns_given;
  thread_index.x = thread;
  threads_[thread].fiber->enter();
  if (!failure_.empty()) report(thread, failed_, failure_);
}

// Lets all threads go on from the barrier that they stand at; false if all have ended.
bool Block::release_barrier() {
  turns_ = 0;
  std::vector<int> live;
  int count = 0;
  for (size_t i = 0; i < threads_.size(); ++i) {
    const Thread& thread = threads_[i];
    if (thread.state == State::kInWarp) report_stuck(i);
    if (thread.state == State::kEnded) continue;
    live.push_back(i);
    count += thread.call.value != 0;
    if (const int first = live[0]; !same_place(thread.call, threads_[first].call)) {
      report(i, thread.call,
             "thread " + std::to_string(first) + " stands at another barrier, " +
                 text_of(threads_[first].call));
    }
  }
  for (const int i : live) {
    const Op op = threads_[i].call.op;
    const bool all = count == static_cast<int>(live.size());
    threads_[i].result = op == Op::kSyncthreadsCount ? count
                         : op == Op::kSyncthreadsAnd ? all
                                                     : count != 0;
  }
  make_ready(live.data(), live.data() + live.size());
  return !live.empty();
}

void Block::make_ready(const int* begin, const int* end) {
  const auto old = static_cast<std::ptrdiff_t>(ready_.size());
  for (const int* i = begin; i != end; ++i) threads_[*i].state = State::kReady;
  ready_.insert(ready_.end(), begin, end);
  shuffle(ready_.begin() + old, ready_.end());
}

uint64_t Block::wait_for_block(const Call& call) {
  Thread& thread = self();
  thread.call = call;
  thread.state = State::kAtBarrier;
  thread.fiber->leave();
  return thread.result;
}

uint64_t Block::wait_for_warp(const Call& call) {
  const int lane = thread_index.x % kWarp;
  const int warp = thread_index.x / kWarp;
  if (!(call.mask >> lane & 1)) fail(call, "the mask leaves out the caller");
  const bool shuffles = Op::kShuffle <= call.op && call.op <= Op::kShuffleXor;
  const bool power = call.width > 0 && call.width <= kWarp && !(call.width & (call.width - 1));
  if (shuffles && !power) fail(call, "the width must be a power of two up to 32");
  Thread& thread = self();
  thread.call = call;
  thread.state = State::kInWarp;
  in_warp_[warp] |= 1u << lane;
  if ((in_warp_[warp] & call.mask) == call.mask) complete(call.mask, warp);
  thread.fiber->leave();
  return thread.result;
}

// Ends the operation of these lanes, all of which wait, if it is one and the same.
void Block::complete(unsigned mask, int warp) {
  Thread* lanes = &threads_[warp * kWarp];
  const Op op = self().call.op;
  int members[kWarp];
  int count = 0;
  for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    if (lanes[lane].call.op != op || lanes[lane].call.mask != mask) return;
    members[count++] = warp * kWarp + lane;
  }
  const unsigned ballot = lanes_where(lanes, mask, [](uint64_t value) { return value != 0; });
  for (int i = 0; i < count; ++i) {
    threads_[members[i]].result = result_of(lanes, members[i] % kWarp, ballot);
  }
  in_warp_[warp] &= ~mask;
  make_ready(members, members + count);
}

void Block::pass() {
  Fiber* own = self().fiber;
  ready_.push_back(thread_index.x);
  std::swap(ready_[rng.below(ready_.size())], ready_.back());
  own->leave();
}

void Block::fail(const Call& call, const std::string& reason) {
  failure_ = reason;
  failed_ = call;
  self().fiber->leave();
  std::abort();  // nobody gives a turn to a thread that failed
}

void Block::report(int thread, const Call& call, const std::string& reason) const {
  throw Error("block " + std::to_string(index_) + ", thread " + std::to_string(thread) + ", " +
              text_of(call) + ": " + reason);
}

// Nothing can go on, and this thread waits for lanes of its warp: says for which, and why in vain.
void Block::report_stuck(int thread) const {
  const Call& call = threads_[thread].call;
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!(call.mask >> lane & 1)) continue;
    const size_t other = thread / kWarp * kWarp + lane;
    const std::string who = "waits for lane " + std::to_string(lane) + ", which ";
    if (other >= threads_.size()) report(thread, call, who + "does not exist");
    const Thread& its = threads_[other];
    if (its.state == State::kEnded) report(thread, call, who + "has ended");
    if (its.call.op == call.op && its.call.mask == call.mask) continue;
    report(thread, call, who + "waits in " + text_of(its.call));
  }
  std::abort();  // an operation that all its lanes have come to has ended
}

// All blocks of a grid, in any order, some of them in turns.
void run_grid(int blocks, int threads) {
  const SharedMemory shared;
  std::vector<unsigned> order(blocks);
  std::iota(order.begin(), order.end(), 0);
  shuffle(order.begin(), order.end());
  auto next = order.begin();
  std::vector<Block> slots;
  for (int slot = 0; slot < std::min(resident, blocks); ++slot) {
    slots.emplace_back(slot, threads, shared);
    slots.back().begin(*next++);
  }
  std::vector<Block*> active;
  for (Block& block : slots) active.push_back(&block);
  const Block* loaded = nullptr;
  while (!active.empty()) {
    const uint32_t chosen = rng.below(active.size());
    if (active[chosen] != loaded) {
      if (loaded != nullptr) current->unload();
      current = active[chosen];
      current->load();
      loaded = current;
    }
    if (!current->go_on(active.size() == 1 ? INT64_MAX : 1 + rng.below(kMaxStretch))) continue;
    loaded = nullptr;  // what it leaves is not needed
    if (next != order.end()) {
      current->begin(*next++);
    } else {
      active.erase(active.begin() + chosen);
    }
  }
}

}  // namespace

void set_seed(uint64_t new_seed) {
  seed = new_seed;
  launches = 0;
}

void set_resident(int blocks) { resident = std::max(blocks, 1); }
void set_switching(int one_in) { switching = std::max(one_in, 0); }
uint64_t turns() { return turns_given; }

uint64_t wait_for_block(const Call& call) { return current->wait_for_block(call); }
uint64_t wait_for_warp(const Call& call) { return current->wait_for_warp(call); }

void trap(Site site) { current->fail({Op::kTrap, site, 0, 0, 0, 0}, "stops the kernel"); }

void switch_point() {
  if (switching != 0 && rng.below(switching) == 0) current->pass();
}

cudaError_t run(int blocks, int threads, const std::function<void()>& body) {
  if (blocks < 1 || threads < 1 || threads > kMaxThreads) return cudaErrorInvalidConfiguration;
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  rng = Random{Random{seed + (++launches << 32)}.next()};
  kernel = &body;
  block_size.x = threads;
  grid_size.x = blocks;
  try {
    run_grid(blocks, threads);
  } catch (const Error& error) {
    const std::string text = std::string("simt: ") + error.what() + " (launch " +
                             std::to_string(launches) + " with SIMT_SEED=" + std::to_string(seed) +
                             ")";
    std::fprintf(stderr, "%s\n", text.c_str());
    throw Error(text);
  }
  return cudaSuccess;
}

}  // namespace simt
