// The threads of a block, and what the lanes of a warp exchange.
#ifndef FASTUNLEARN_TESTS_SIMT_WARP_H_
#define FASTUNLEARN_TESTS_SIMT_WARP_H_

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>

#include "fiber.h"
#include "simt.h"

namespace simt {

inline constexpr int kWarp = 32;
// What a shuffle from a lane outside the mask gives, so that its use shows.
inline constexpr uint64_t kUndefined = 0xA5A5A5A5A5A5A5A5u;

// In the order of Op.
inline constexpr const char* kNames[] = {"__syncthreads",     "__syncthreads_or",
                                         "__syncthreads_and", "__syncthreads_count",
                                         "__syncwarp",        "__shfl_sync",
                                         "__shfl_up_sync",    "__shfl_down_sync",
                                         "__shfl_xor_sync",   "__ballot_sync",
                                         "__any_sync",        "__all_sync",
                                         "__match_any_sync",  "__trap"};

enum class State { kReady, kAtBarrier, kInWarp, kEnded };

struct Thread {
  Fiber* fiber;
  State state;
  Call call;        // what it waits in
  uint64_t result;  // of that
};

inline bool is_barrier(Op op) { return op <= Op::kSyncthreadsCount; }

inline bool same_place(const Call& a, const Call& b) {
  return a.op == b.op && a.site.line == b.site.line && !std::strcmp(a.site.file, b.site.file);
}

inline std::string text_of(const Call& call) {
  char text[512];
  const int used = std::snprintf(text, sizeof(text), "%s at %s:%d",
                                 kNames[static_cast<int>(call.op)], call.site.file, call.site.line);
  if (!is_barrier(call.op) && call.op != Op::kTrap && used < 480) {
    std::snprintf(text + used, sizeof(text) - used, " with mask 0x%08x", call.mask);
  }
  return text;
}

// The lane that a shuffle reads; `lane` itself where the device gives a lane its own value back.
inline int source_lane(const Call& call, int lane) {
  const int width = call.width;
  const int first = lane & ~(width - 1);
  const int distance = call.lane & (kWarp - 1);
  int source = lane;
  if (call.op == Op::kShuffle) source = first + (call.lane & (width - 1));
  if (call.op == Op::kShuffleUp) source = lane - distance < first ? lane : lane - distance;
  if (call.op == Op::kShuffleDown) source = lane + distance;
  if (call.op == Op::kShuffleXor) source = lane ^ distance;
  return source >= first + width ? lane : source;
}

// Lanes of the mask that brought a value for which `f` holds. warp: the 32 threads.
template <class F>
unsigned lanes_where(const Thread* warp, unsigned mask, F f) {
  unsigned found = 0;
  for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    if (f(warp[lane].call.value)) found |= 1u << lane;
  }
  return found;
}

// What an operation that all lanes of its mask have come to gives to one of them.
inline uint64_t result_of(const Thread* warp, int lane, unsigned ballot) {
  const Call& call = warp[lane].call;
  switch (call.op) {
    case Op::kBallot:
      return ballot;
    case Op::kAny:
      return ballot != 0;
    case Op::kAll:
      return ballot == call.mask;
    case Op::kMatchAny:
      return lanes_where(warp, call.mask, [&](uint64_t value) { return value == call.value; });
    case Op::kShuffle:
    case Op::kShuffleUp:
    case Op::kShuffleDown:
    case Op::kShuffleXor: {
      const int source = source_lane(call, lane);
      const bool defined = call.mask >> source & 1;
      return defined ? warp[source].call.value : kUndefined;
    }
    default:
      return 0;
  }
}

}  // namespace simt

#endif  // FASTUNLEARN_TESTS_SIMT_WARP_H_
