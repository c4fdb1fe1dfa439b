// CUDA C++ as g++ sees it: what a kernel's source needs in order to run on a CPU, without a GPU.
//
//   g++ -std=c++17 -x c++ -DFASTUNLEARN_SIMT -Itests/simt -Icsrc -ffp-contract=off
//       -fno-strict-aliasing -Wno-unknown-pragmas kernel.cu -x none simt.cpp
//
// Each thread of a block is a fiber. One runs at a time, until it comes to a barrier, to an
// operation of its warp, to the end, or, by chance, to an atomic or a fence; then another is
// chosen. A seed decides every choice (SIMT_SEED or set_seed), so that a failure can be repeated.
// Shared arrays hold a poison pattern when a block begins. A barrier or an operation of a warp that
// cannot end, because a thread is elsewhere or gone or the mask is wrong, throws simt::Error
// out of the launch, with the thread and the line. Built with -fsanitize=address,undefined an
// access outside global memory or past the bounds of a shared array is told too; past a shared
// array through a pointer it is not.
//
// What this cannot prove:
//   - memory ordering: each access is seen by all at once, so that a missing fence or `volatile`
//     never shows, neither between blocks nor within a warp;
//   - what happens between two switch points: a plain read, modify, write by many threads loses no
//     update here, and races show only as far as the order of whole stretches shows them;
//   - what nvcc, ptxas and libdevice make of the source: rounding, fused operations, code for one
//     architecture, registers, spills;
//   - occupancy, launch bounds, alignment where no sanitizer looks, and any real timing.
//
// Grids are one-dimensional. `alignas` goes before `__shared__`. A loop that waits for another
// thread must hold a switch point; for another block, that block must be resident (set_resident).
#ifndef FASTUNLEARN_TESTS_SIMT_SIMT_H_
#define FASTUNLEARN_TESTS_SIMT_SIMT_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <tuple>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
// The executor finds the thread-local variables of its module, fills and exchanges them.
#define __shared__ thread_local

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

// May alias, as the wide loads of a kernel read arrays of any type.
struct alignas(8) [[gnu::may_alias]] uint2 {
  unsigned x, y;
};

struct alignas(16) [[gnu::may_alias]] uint4 {
  unsigned x, y, z, w;
};

struct alignas(16) [[gnu::may_alias]] ulonglong2 {
  unsigned long long x, y;
};

struct alignas(16) [[gnu::may_alias]] float4 {
  float x, y, z, w;
};

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
};

using cudaStream_t = struct CUstream_st*;

namespace simt {

// A kernel did what has no meaning on a device.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The schedule of all launches from here on; SIMT_SEED in the environment, or 0, decides the first.
void set_seed(uint64_t seed);
// How many blocks take turns; 1, the default, runs one after the other. SIMT_RESIDENT.
void set_resident(int blocks);
// One in so many atomics and fences gives another thread its turn; 0: none. Default 4. SIMT_SWITCH.
void set_switching(int one_in);
// Turns that threads were given since the program began.
uint64_t turns();

// Place in a source file, the caller's where it is a default argument.
struct Site {
  const char* file;
  int line;
};

inline Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return {file, line};
}

enum class Op {
  kSyncthreads,
  kSyncthreadsOr,
  kSyncthreadsAnd,
  kSyncthreadsCount,
  kSyncwarp,
  kShuffle,
  kShuffleUp,
  kShuffleDown,
  kShuffleXor,
  kBallot,
  kAny,
  kAll,
  kMatchAny,
  kTrap,
};

// What a thread asks of its block or warp.
struct Call {
  Op op;
  Site site;
  unsigned mask;   // lanes that take part; unused by barriers of a block
  uint64_t value;  // bits of what the thread brings
  unsigned lane;   // of a shuffle: source lane, distance or mask
  int width;
};

// Each waits for the threads it concerns and returns this thread's result.
uint64_t wait_for_block(const Call& call);
uint64_t wait_for_warp(const Call& call);
[[noreturn]] void trap(Site site);
// Gives another thread its turn, by chance.
void switch_point();

extern uint3 thread_index;
extern uint3 block_index;
extern dim3 block_size;
extern dim3 grid_size;

template <class T>
uint64_t bits_of(T value) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <class T>
T shuffle(Op op, unsigned mask, T value, unsigned lane, int width, Site site) {
  const uint64_t bits = wait_for_warp({op, site, mask, bits_of(value), lane, width});
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline uint64_t vote(Op op, unsigned mask, bool value, Site site) {
  return wait_for_warp({op, site, mask, value, 0, 0});
}

inline int barrier(Op op, int value, Site site) {
  return static_cast<int>(wait_for_block({op, site, 0, value != 0, 0, 0}));
}

template <class T>
struct Identity {
  using Type = T;
};

// The type of an operand that does not take part in deduction.
template <class T>
using Same = typename Identity<T>::Type;

// The types that CUDA has atomics for; uint64_t, an unsigned long, is none of them.
template <class T>
inline constexpr bool kNarrowWord = std::is_same_v<T, int> || std::is_same_v<T, unsigned>;
template <class T>
inline constexpr bool kWord = kNarrowWord<T> || std::is_same_v<T, unsigned long long>;

template <class T, class F>
T update(T* address, F new_value) {
  static_assert(kWord<T>);
  switch_point();
  const T old = *address;
  *address = new_value(old);
  return old;
}

// Runs every thread of a grid to its end.
cudaError_t run(int blocks, int threads, const std::function<void()>& body);

template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), int blocks, int threads, cudaStream_t, A&&... args) {
  const std::tuple<P...> values(std::forward<A>(args)...);
  return run(blocks, threads, [&] { std::apply(kernel, values); });
}

}  // namespace simt

inline const uint3& threadIdx = simt::thread_index;
inline const uint3& blockIdx = simt::block_index;
inline const dim3& blockDim = simt::block_size;
inline const dim3& gridDim = simt::grid_size;
inline constexpr int warpSize = 32;

inline void __syncthreads(simt::Site site = simt::here()) {
  simt::barrier(simt::Op::kSyncthreads, 0, site);
}

inline int __syncthreads_or(int value, simt::Site site = simt::here()) {
  return simt::barrier(simt::Op::kSyncthreadsOr, value, site);
}

inline int __syncthreads_and(int value, simt::Site site = simt::here()) {
  return simt::barrier(simt::Op::kSyncthreadsAnd, value, site);
}

inline int __syncthreads_count(int value, simt::Site site = simt::here()) {
  return simt::barrier(simt::Op::kSyncthreadsCount, value, site);
}

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, simt::Site site = simt::here()) {
  simt::vote(simt::Op::kSyncwarp, mask, false, site);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, simt::Site site = simt::here()) {
  return simt::shuffle(simt::Op::kShuffle, mask, value, lane, width, site);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 simt::Site site = simt::here()) {
  return simt::shuffle(simt::Op::kShuffleUp, mask, value, delta, width, site);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   simt::Site site = simt::here()) {
  return simt::shuffle(simt::Op::kShuffleDown, mask, value, delta, width, site);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                  simt::Site site = simt::here()) {
  return simt::shuffle(simt::Op::kShuffleXor, mask, value, lanes, width, site);
}

inline unsigned __ballot_sync(unsigned mask, int value, simt::Site site = simt::here()) {
  return static_cast<unsigned>(simt::vote(simt::Op::kBallot, mask, value != 0, site));
}

inline int __any_sync(unsigned mask, int value, simt::Site site = simt::here()) {
  return static_cast<int>(simt::vote(simt::Op::kAny, mask, value != 0, site));
}

inline int __all_sync(unsigned mask, int value, simt::Site site = simt::here()) {
  return static_cast<int>(simt::vote(simt::Op::kAll, mask, value != 0, site));
}

template <class T>
unsigned __match_any_sync(unsigned mask, T value, simt::Site site = simt::here()) {
  const simt::Call call{simt::Op::kMatchAny, site, mask, simt::bits_of(value), 0, 0};
  return static_cast<unsigned>(simt::wait_for_warp(call));
}

inline void __threadfence() { simt::switch_point(); }

[[noreturn]] inline void __trap(simt::Site site = simt::here()) { simt::trap(site); }

template <class T>
T __ldg(const T* address) {
  return *address;
}

template <class T>
T __ldcs(const T* address) {
  return *address;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(x); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(x); }

inline unsigned __brev(unsigned x) {
  unsigned out = 0;
  for (int bit = 0; bit < 32; ++bit) out |= (x >> bit & 1) << (31 - bit);
  return out;
}

template <class T>
T atomicAdd(T* address, simt::Same<T> value) {
  using Unsigned = std::make_unsigned_t<T>;  // wraps around, as on the device
  return simt::update(
      address, [=](T old) { return static_cast<T>(Unsigned(old) + static_cast<Unsigned>(value)); });
}

template <class T>
T atomicSub(T* address, simt::Same<T> value) {
  static_assert(simt::kNarrowWord<T>, "CUDA subtracts 32-bit words only");
  return simt::update(address, [=](T old) {
    return static_cast<T>(static_cast<unsigned>(old) - static_cast<unsigned>(value));
  });
}

template <class T>
T atomicOr(T* address, simt::Same<T> value) {
  return simt::update(address, [=](T old) { return old | value; });
}

template <class T>
T atomicAnd(T* address, simt::Same<T> value) {
  return simt::update(address, [=](T old) { return old & value; });
}

template <class T>
T atomicXor(T* address, simt::Same<T> value) {
  return simt::update(address, [=](T old) { return old ^ value; });
}

template <class T>
T atomicMax(T* address, simt::Same<T> value) {
  return simt::update(address, [=](T old) { return old < value ? value : old; });
}

template <class T>
T atomicMin(T* address, simt::Same<T> value) {
  return simt::update(address, [=](T old) { return value < old ? value : old; });
}

template <class T>
T atomicExch(T* address, simt::Same<T> value) {
  return simt::update(address, [=](T) { return value; });
}

template <class T>
T atomicCAS(T* address, simt::Same<T> expected, simt::Same<T> value) {
  return simt::update(address, [=](T old) { return old == expected ? value : old; });
}

template <class T>
T atomicAdd_block(T* address, simt::Same<T> value) {
  return atomicAdd(address, value);
}

template <class T>
T atomicSub_block(T* address, simt::Same<T> value) {
  return atomicSub(address, value);
}

template <class T>
T atomicOr_block(T* address, simt::Same<T> value) {
  return atomicOr(address, value);
}

template <class T>
T atomicAnd_block(T* address, simt::Same<T> value) {
  return atomicAnd(address, value);
}

template <class T>
T atomicXor_block(T* address, simt::Same<T> value) {
  return atomicXor(address, value);
}

template <class T>
T atomicMax_block(T* address, simt::Same<T> value) {
  return atomicMax(address, value);
}

template <class T>
T atomicMin_block(T* address, simt::Same<T> value) {
  return atomicMin(address, value);
}

template <class T>
T atomicExch_block(T* address, simt::Same<T> value) {
  return atomicExch(address, value);
}

template <class T>
T atomicCAS_block(T* address, simt::Same<T> expected, simt::Same<T> value) {
  return atomicCAS(address, expected, value);
}

inline cudaError_t cudaMemsetAsync(void* memory, int byte, size_t count, cudaStream_t) {
  std::memset(memory, byte, count);
  return cudaSuccess;
}

// Nothing is asynchronous here: a launch returns its own error, and none is left behind.
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaPeekAtLastError() { return cudaSuccess; }

#endif  // FASTUNLEARN_TESTS_SIMT_SIMT_H_
