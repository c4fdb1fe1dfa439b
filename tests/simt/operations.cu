// Every operation of the device that the kernels use, against values worked out by hand. The same
// source runs on a GPU, so that it also shows where the harness and a device differ.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "check.h"
#include "cuda/launch.h"

namespace fastunlearn::testing {
namespace {

#ifdef FASTUNLEARN_SIMT
void* allocate(size_t bytes) { return std::malloc(bytes); }
void release(void* memory) { std::free(memory); }
void finish_kernel() {}
#else
void* allocate(size_t bytes) {
  void* memory = nullptr;
  cudaMallocManaged(&memory, bytes);
  return memory;
}
void release(void* memory) { cudaFree(memory); }
void finish_kernel() { cudaDeviceSynchronize(); }
#endif

struct Release {
  void operator()(void* memory) const { release(memory); }
};

// Zeroes, for the host and the device.
template <class T>
std::unique_ptr<T[], Release> array(int count) {
  T* found = static_cast<T*>(allocate(count * sizeof(T)));
  for (int i = 0; i < count; ++i) found[i] = T{};
  return std::unique_ptr<T[], Release>(found);
}

constexpr unsigned kFull = 0xFFFFFFFFu;
constexpr unsigned kOdd = 0xAAAAAAAAu;

template <class... P, class... A>
void run(void (*kernel)(P...), int blocks, int threads, A... args) {
  equal(launch(kernel, blocks, threads, nullptr, args...), cudaSuccess, "status");
  finish_kernel();
}

// out: (64, 10), wide: (64, 2)
__global__ void shuffle(unsigned* out, unsigned long long* wide) {
  const unsigned t = threadIdx.x;
  const int lane = t % 32;
  const unsigned v = 1000 + t;
  unsigned* row = out + 10 * t;
  row[0] = __shfl_sync(kFull, v, 5);
  row[1] = __shfl_sync(kFull, v, lane + 1, 8);
  row[2] = __shfl_up_sync(kFull, v, 3);
  row[3] = __shfl_up_sync(kFull, v, 1, 8);
  row[4] = __shfl_down_sync(kFull, v, 4);
  row[5] = __shfl_down_sync(kFull, v, 2, 16);
  row[6] = __shfl_xor_sync(kFull, v, 1);
  row[7] = __shfl_xor_sync(kFull, v, 16, 8);
  row[8] = static_cast<unsigned>(__shfl_xor_sync(kFull, 0.5f * v, 31));
  if (lane % 2 == 1) row[9] = __shfl_down_sync(kOdd, v, 2);
  wide[2 * t] = __shfl_sync(kFull, v * 0x100000001ull, 31 - lane);
  wide[2 * t + 1] = __shfl_up_sync(kFull, -static_cast<long long>(v), 1);
}

void test_shuffles() {
  const auto out = array<unsigned>(64 * 10);
  const auto wide = array<unsigned long long>(64 * 2);
  run(shuffle, 1, 64, out.get(), wide.get());
  for (unsigned t = 0; t < 64; ++t) {
    const unsigned lane = t % 32, v = 1000 + t, first = 1000 + t - lane;
    const unsigned* row = &out[10 * t];
    equal(row[0], first + 5, "one lane to all", t);
    equal(row[1], first + lane / 8 * 8 + (lane + 1) % 8, "the next of eight", t);
    equal(row[2], lane < 3 ? v : v - 3, "three up", t);
    equal(row[3], lane % 8 == 0 ? v : v - 1, "one up in eight", t);
    equal(row[4], lane > 27 ? v : v + 4, "four down", t);
    equal(row[5], lane % 16 > 13 ? v : v + 2, "two down in sixteen", t);
    equal(row[6], lane % 2 ? v - 1 : v + 1, "neighbours", t);
    equal(row[7], lane < 16 ? v : v - 16, "a later group is out of reach", t);
    equal(row[8], (first + 31 - lane) / 2, "floats", t);
    if (lane % 2 == 1) equal(row[9], lane == 31 ? v : v + 2, "odd lanes", t);
    equal(wide[2 * t], (first + 31 - lane) * 0x100000001ull, "64 bits", t);
    equal(wide[2 * t + 1], -static_cast<long long>(lane == 0 ? v : v - 1), "signed 64 bits", t);
  }
}

// out: (64, 9)
__global__ void vote(unsigned* out) {
  const int lane = threadIdx.x % 32;
  unsigned* row = out + 9 * threadIdx.x;
  row[0] = __ballot_sync(kFull, lane % 3 == 0);
  row[1] = __any_sync(kFull, lane == 7);
  row[2] = __any_sync(kFull, lane == 32);
  row[3] = __all_sync(kFull, lane < 32);
  row[4] = __all_sync(kFull, lane != 7);
  row[5] = __match_any_sync(kFull, lane / 4);
  row[6] = __match_any_sync(kFull, static_cast<unsigned long long>(lane % 2) << 40);
  if (lane < 16) {
    row[7] = __ballot_sync(0xFFFFu, lane % 2);
    row[8] = __all_sync(0xFFFFu, lane < 16);
  } else {
    row[7] = __match_any_sync(0xFFFF0000u, lane % 4);
    row[8] = __any_sync(0xFFFF0000u, 0);
  }
  __syncwarp();
}

void test_votes() {
  const auto out = array<unsigned>(64 * 9);
  run(vote, 1, 64, out.get());
  for (unsigned t = 0; t < 64; ++t) {
    const unsigned lane = t % 32;
    const unsigned expected[9] = {0x49249249u,
                                  1,
                                  0,
                                  1,
                                  0,
                                  0xFu << lane / 4 * 4,
                                  lane % 2 ? 0xAAAAAAAAu : 0x55555555u,
                                  lane < 16 ? 0xAAAAu : 0x11110000u << lane % 4,
                                  lane < 16};
    for (int i = 0; i < 9; ++i) equal(out[9 * t + i], expected[i], "vote", 9 * t + i);
  }
}

// out: (96, 6)
__global__ void barrier(int* out) {
  const int t = threadIdx.x;
  int* row = out + 6 * t;
  row[0] = __syncthreads_count(t % 5 == 0);
  row[1] = __syncthreads_or(t == 95);
  row[2] = __syncthreads_or(t == 96);
  row[3] = __syncthreads_and(t < 96);
  row[4] = __syncthreads_and(t != 3);
  if (t >= 64) return;
  row[5] = __syncthreads_count(1);  // of those that have not ended
}

void test_barriers() {
  const auto out = array<int>(96 * 6);
  run(barrier, 1, 96, out.get());
  for (int t = 0; t < 96; ++t) {
    const int expected[6] = {20, 1, 0, 1, 0, t < 64 ? 64 : 0};
    for (int i = 0; i < 6; ++i) {
      equal(out[6 * t + i] != 0, expected[i] != 0, "barrier", 6 * t + i);
    }
    equal(out[6 * t], 20, "count", t);
    equal(out[6 * t + 5], expected[5], "count of live threads", t);
  }
}

// Each of the threads 0 to n-1 of the grid works on words[0..8]; seen: what its exchange gave back.
template <class T>
__device__ void use_atomics(T* words, T t) {
  atomicAdd(&words[0], t);
  atomicOr(&words[1], T{1} << t % 31);
  atomicAnd(&words[2], ~(T{1} << t % 31));
  atomicXor(&words[3], T{1} << t % 31);
  atomicMax(&words[4], t);
  atomicMin(&words[5], t);
  atomicAdd(&words[6], atomicExch(&words[7], t));
  T old = words[8], seen;
  while ((seen = atomicCAS(&words[8], old, old + 2)) != old) old = seen;
}

template <class T>
__device__ void use_block_atomics(T* words, T t) {
  atomicAdd_block(&words[0], t);
  atomicOr_block(&words[1], T{1} << t % 31);
  atomicAnd_block(&words[2], ~(T{1} << t % 31));
  atomicXor_block(&words[3], T{1} << t % 31);
  atomicMax_block(&words[4], t);
  atomicMin_block(&words[5], t);
  atomicAdd_block(&words[6], atomicExch_block(&words[7], t));
  T old = words[8], seen;
  while ((seen = atomicCAS_block(&words[8], old, old + 2)) != old) old = seen;
}

// words: (9,), of all blocks; shared_words: (gridDim.x, 9), what each block made of its own
template <class T>
__global__ void atomics(T* words, T* shared_words) {
  __shared__ T own[9];
  if (threadIdx.x < 9) own[threadIdx.x] = 0;
  if (threadIdx.x == 2) own[2] = ~T{0};
  if (threadIdx.x == 5) own[5] = 1000;
  __syncthreads();
  use_atomics<T>(words, blockIdx.x * blockDim.x + threadIdx.x);
  use_block_atomics<T>(own, threadIdx.x);
  __syncthreads();
  if (threadIdx.x < 9) shared_words[9 * blockIdx.x + threadIdx.x] = own[threadIdx.x];
}

template <class T>
void check_words(const T* words, unsigned threads) {
  const T bits = (1ull << 31) - 1;  // threads >= 31: every one of them was touched
  T parity = 0;
  for (unsigned t = 0; t < threads; ++t) parity ^= T{1} << t % 31;
  const T sum = threads * (threads - 1) / 2;
  equal(words[0], sum, "add");
  equal(words[1], bits, "or");
  equal(words[2], static_cast<T>(~bits), "and");
  equal(words[3], parity, "xor");
  equal(words[4], threads - 1, "max");
  equal(words[5], 0, "min");
  equal(words[6] + words[7], sum, "exchange: each value comes back once, but for the last");
  equal(words[8], 2 * threads, "compare and exchange");
}

template <class T>
void test_atomics() {
  const auto words = array<T>(9);
  const auto shared_words = array<T>(4 * 9);
  words[2] = ~T{0};
  words[5] = 1000;
  run(atomics<T>, 4, 64, words.get(), shared_words.get());
  check_words(words.get(), 256);
  for (int block = 0; block < 4; ++block) check_words(&shared_words[9 * block], 64);
}

// down: (2,), below: (2,)
__global__ void signs(unsigned* down, int* below) {
  atomicSub(&down[0], 3u);
  atomicSub_block(&below[0], 2);
  atomicMin(&below[1], -static_cast<int>(threadIdx.x));
  atomicAdd(&down[1], 0x80000000u);
  __threadfence();
}

void test_signs() {
  const auto down = array<unsigned>(2);
  const auto below = array<int>(2);
  run(signs, 1, 32, down.get(), below.get());
  equal(down[0], static_cast<unsigned>(-96), "wraps around below zero");
  equal(down[1], 0, "wraps around above");
  equal(static_cast<unsigned>(below[0]), static_cast<unsigned>(-64), "signed");
  equal(static_cast<unsigned>(below[1]), static_cast<unsigned>(-31), "signed minimum");
}

// out: (16,)
__global__ void bits(long long* out, unsigned zero) {
  out[0] = __popc(0xF0F00001u | zero);
  out[1] = __popcll(0xFF000000000000FFull | zero);
  out[2] = __ffs(static_cast<int>(zero));
  out[3] = __ffs(static_cast<int>(0x80000000u | zero));
  out[4] = __ffsll(static_cast<long long>(1ull << 40 | zero));
  out[5] = __ffsll(static_cast<long long>(zero));
  out[6] = __clz(static_cast<int>(zero));
  out[7] = __clz(static_cast<int>(0x00010000u | zero));
  out[8] = __clzll(static_cast<long long>(zero));
  out[9] = __clzll(static_cast<long long>(1ull << 40 | zero));
  out[10] = __brev(0x80000001u | zero);
  out[11] = __brev(0x0000000Du | zero);
}

void test_bits() {
  const auto out = array<long long>(12);
  run(bits, 1, 1, out.get(), 0u);
  const long long expected[12] = {9, 16, 0, 32, 41, 0, 32, 15, 64, 23, 0x80000001ll, 0xB0000000ll};
  for (int i = 0; i < 12; ++i) equal(out[i], expected[i], "bits", i);
}

// in: (16,), aligned to 16 bytes; out: (8,)
__global__ void load(const unsigned* in, const float* floats, unsigned long long* out) {
  const uint2 two = reinterpret_cast<const uint2*>(in)[1];
  const uint4 four = reinterpret_cast<const uint4*>(in)[2];
  const ulonglong2 wide = *reinterpret_cast<const ulonglong2*>(in);
  const float4 real = *reinterpret_cast<const float4*>(floats);
  out[0] = two.x * 10 + two.y;
  out[1] = four.x * 1000 + four.y * 100 + four.z * 10 + four.w;
  out[2] = wide.x;
  out[3] = wide.y;
  out[4] = static_cast<unsigned long long>(real.x + real.y * 2 + real.z * 4 + real.w * 8);
  out[5] = __ldg(in + 7);
}

void test_loads() {
  const auto in = array<unsigned>(16);
  const auto floats = array<float>(4);
  const auto out = array<unsigned long long>(8);
  for (int i = 0; i < 16; ++i) in[i] = i;
  for (int i = 0; i < 4; ++i) floats[i] = static_cast<float>(i + 1);
  run(load, 1, 1, in.get(), floats.get(), out.get());
  const unsigned long long expected[6] = {23, 9011, 1ull << 32, 3ull << 32 | 2, 49, 7};
  for (int i = 0; i < 6; ++i) equal(out[i], expected[i], "load", i);
}

// out: (gridDim.x * blockDim.x, 5)
__global__ void indices(unsigned* out) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  unsigned* row = out + 5 * i;
  row[0] = blockIdx.x + 1;
  row[1] = threadIdx.x + 1;
  row[2] = gridDim.x;
  row[3] = blockDim.x;
  row[4] = gridDim.y + blockDim.z + blockIdx.y + threadIdx.y;
}

void test_launch() {
  const auto out = array<unsigned>(3 * 7 * 5);
  run(indices, 3, 7, out.get());
  for (unsigned i = 0; i < 21; ++i) {
    const unsigned expected[5] = {i / 7 + 1, i % 7 + 1, 3, 7, 2};
    for (unsigned j = 0; j < 5; ++j) equal(out[5 * i + j], expected[j], "index", 5 * i + j);
  }
  equal(cudaMemsetAsync(out.get(), 0xFF, 8, nullptr), cudaSuccess, "status");
  finish_kernel();
  equal(out[1], 0xFFFFFFFFu, "set");
  equal(out[2], 3, "not set");
  for (int blocks : {0, -1}) {
    equal(launch(indices, blocks, 32, nullptr, out.get()), cudaErrorInvalidConfiguration,
          "no blocks");
  }
  for (int threads : {0, 1025}) {
    equal(launch(indices, 1, threads, nullptr, out.get()), cudaErrorInvalidConfiguration,
          "threads");
  }
  equal(cudaPeekAtLastError(), cudaSuccess, "a launch takes its error along");
  equal(cudaGetLastError(), cudaSuccess, "no error");
}

}  // namespace
}  // namespace fastunlearn::testing

int main() {
  using namespace fastunlearn::testing;
  test_shuffles();
  test_votes();
  test_barriers();
  test_atomics<int>();
  test_atomics<unsigned>();
  test_atomics<unsigned long long>();
  test_signs();
  test_bits();
  test_loads();
  test_launch();
  return finish();
}
