// The thread pool: every task once, its memory visible before and after, whatever the callers do.
//
// Tasks and callers write plain memory, without atomics, as the kernels do: ThreadSanitizer then
// sees whether the pool itself orders these accesses. An argument "fork" adds the fork check, which
// ThreadSanitizer does not take part in.
#include "cpu/pool.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/float_mode.h"

namespace fastunlearn::testing {
namespace {

// Greatest number of threads: more than the cores of most machines that run this.
constexpr int kThreads = 8;

// Runs tasks that read what the caller wrote and write what it reads; returns whether all is there.
bool tasks_once(int threads, int64_t num_tasks) {
  std::vector<int64_t> input(num_tasks), output(num_tasks), per_worker(threads);
  for (int64_t i = 0; i < num_tasks; ++i) input[i] = 3 * i + 1;
  bool workers_known = true;
  parallel_for(threads, num_tasks, [&](int worker, int64_t task) {
    if (worker < 0 || worker >= threads) {
      workers_known = false;
      return;
    }
    output[task] += input[task];
    per_worker[worker] += 1;
  });
  int64_t done = 0;
  for (const int64_t count : per_worker) done += count;
  return workers_known && done == num_tasks && output == input;
}

void check_tasks() {
  for (int threads = 1; threads <= kThreads; ++threads) {
    for (const int64_t num_tasks : {0, 1, 2, 3, 7, 8, 9, 100, 1000}) {
      holds(tasks_once(threads, num_tasks), "every task once", num_tasks);
    }
  }
}

// Thread counts go up and down between jobs that are over at once: workers that are late for one
// must not take part in another.
void check_many_jobs() {
  for (int i = 0; i < 1500; ++i) {
    holds(tasks_once(1 + i * 5 % kThreads, 1 + i % 11), "every task once, quickly", i);
  }
}

void check_two_callers() {
  bool fine[2] = {true, true};
  std::atomic<int> arrived{0};
  const auto caller = [&](int which) {
    ++arrived;
    while (arrived != 2) std::this_thread::yield();
    for (int i = 0; i < 200; ++i) fine[which] = tasks_once(2 + which, 1 + i % 50) && fine[which];
  };
  std::thread other(caller, 1);
  caller(0);
  other.join();
  holds(fine[0] && fine[1], "two callers at a time");
}

// Both outer tasks wait for each other, so that one of them is on a worker.
void check_nested() {
  std::atomic<int> arrived{0};
  int64_t sums[2] = {};
  parallel_for(2, 2, [&](int, int64_t task) {
    ++arrived;
    while (arrived != 2) std::this_thread::yield();
    parallel_for(4, 10, [&](int worker, int64_t step) {
      if (worker == 0) sums[task] += step;  // nested tasks stay on the thread they come from
    });
  });
  for (int i = 0; i < 2; ++i) equal(sums[i], 45, "a parallel call inside of another", i);
}

void check_exceptions() {
  for (int threads = 1; threads <= kThreads; ++threads) {
    bool met = false;
    try {
      parallel_for(threads, 100, [](int, int64_t task) {
        if (task % 10 == 3) throw std::runtime_error("planted");
      });
    } catch (const std::runtime_error& error) {
      met = std::strcmp(error.what(), "planted") == 0;
    }
    holds(met, "an exception reaches the caller", threads);
    holds(tasks_once(threads, 100), "the pool works on after an exception", threads);
  }
}

#if defined(__x86_64__)

void check_float_mode() {
  const unsigned int before = _mm_getcsr();
  const unsigned int flushing = before | 0x8040;  // flush to zero, denormals are zero
  volatile float smallest_normal = 0x1p-126f;
  for (int threads = 1; threads <= kThreads; threads *= 2) {
    float halves[100] = {};
    _mm_setcsr(flushing);
    parallel_for(threads, 100, [&](int, int64_t task) { halves[task] = smallest_normal * 0.5f; });
    const unsigned int after = _mm_getcsr();
    _mm_setcsr(before);
    for (const float half : halves) holds(half == 0x1p-127f, "denormal results", threads);
    equal(after & 0xFFC0, flushing & 0xFFC0, "the caller's mode afterwards", threads);
  }
}

#else
void check_float_mode() {}
#endif

void check_fork() {
  holds(tasks_once(4, 100), "before the fork");
  const pid_t child = fork();
  if (child == 0) _exit(tasks_once(4, 100) ? 0 : 1);  // hangs if it waits for the lost workers
  int status = -1;
  holds(waitpid(child, &status, 0) == child && status == 0, "the child has a pool of its own");
  holds(tasks_once(4, 100), "the parent keeps its pool");
}

}  // namespace
}  // namespace fastunlearn::testing

int main(int argc, char** argv) {
  using namespace fastunlearn::testing;  // NOLINT: the checks below
  alarm(60);                             // a thread that waits for ever ends the program
  check_tasks();
  check_many_jobs();
  check_two_callers();
  check_nested();
  check_exceptions();
  check_float_mode();
  if (argc > 1 && std::strcmp(argv[1], "fork") == 0) check_fork();
  return finish();
}
