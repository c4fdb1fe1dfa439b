#include "cpu/pool.h"

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

#include "cpu/float_mode.h"
#include "cpu/tuning.h"

namespace fastunlearn {
namespace {

// While alive, this thread is inside a task; a parallel call in there runs on this thread alone,
// since the pool is taken.
class Working {
 public:
  Working() : before_(now) { now = true; }
  ~Working() { now = before_; }
  static thread_local bool now;

 private:
  const bool before_;
};
thread_local bool Working::now = false;

// One parallel_for: workers draw task numbers until none is left.
struct Job {
  Job(int64_t tasks, TaskRef task_body) : num_tasks(tasks), body(task_body) {}

  void work(int worker) {
    const IeeeMode mode;
    const Working working;
    try {
      for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < num_tasks;) {
        body(worker, task);
      }
    } catch (...) {
      next.store(num_tasks, std::memory_order_relaxed);
      if (!failed.exchange(true)) failure = std::current_exception();
    }
  }

  const int64_t num_tasks;
  const TaskRef body;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr failure;
};

// Workers sleep on a condition variable, after a short spin: the phases of one call follow each
// other within microseconds.
class Pool {
 public:
  void run(int threads, Job* job) {
    const std::lock_guard<std::mutex> one_caller(callers_);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      while (size_ < threads - 1) spawn();
      job_ = job;
      wanted_ = threads - 1;
      busy_.store(threads - 1, std::memory_order_relaxed);
      ticket_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    job->work(0);
    while (busy_.load(std::memory_order_acquire) != 0) std::this_thread::yield();
  }

 private:
  void spawn() {
    const int worker = size_ + 1;
    const uint64_t seen = ticket_.load(std::memory_order_relaxed);
    std::thread([this, worker, seen] { serve(worker, seen); }).detach();
    ++size_;
  }

  void serve(int worker, uint64_t seen) {
    for (;;) {
      for (int spin = 0; spin < kSpins && ticket_.load(std::memory_order_acquire) == seen; ++spin) {
        std::this_thread::yield();
      }
      Job* job = nullptr;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return ticket_.load(std::memory_order_relaxed) != seen; });
        seen = ticket_.load(std::memory_order_relaxed);
        if (worker <= wanted_) job = job_;
      }
      if (job == nullptr) continue;
      job->work(worker);
      busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::mutex callers_;  // calls from several threads take turns
  std::mutex mutex_;    // guards what follows
  std::condition_variable wake_;
  int size_ = 0;    // workers that exist; they are never joined
  int wanted_ = 0;  // workers 1..wanted_ take part in the job
  Job* job_ = nullptr;
  std::atomic<uint64_t> ticket_{0};  // number of jobs so far
  std::atomic<int> busy_{0};         // workers that have not finished the job
};

std::atomic<Pool*> current{nullptr};
std::atomic<Runner> lender{nullptr};

// Threads do not survive a fork, nor do the locks they held: the child starts a new pool. The old
// one is leaked, since its destructor would wait for them.
void forget_threads() {
  current.store(nullptr);
  lender.store(nullptr);
}

void watch_forks() {
  static const int registered = pthread_atfork(nullptr, nullptr, forget_threads);
  (void)registered;
}

Pool& pool() {
  watch_forks();
  Pool* found = current.load();
  if (found == nullptr) {
    Pool* const made = new Pool;
    if (current.compare_exchange_strong(found, made)) return *made;
    delete made;  // another thread was faster; no worker has started
  }
  return *found;
}

}  // namespace

void borrow_threads(Runner runner) {
  watch_forks();
  lender.store(runner);
}

void parallel_for(int threads, int64_t num_tasks, TaskRef body) {
  if (num_tasks == 0) return;
  if (threads > num_tasks) threads = static_cast<int>(num_tasks);
  Job job(num_tasks, body);
  if (threads <= 1 || Working::now) {
    job.work(0);
  } else if (const Runner runner = lender.load()) {
    runner(threads, [&job](int worker, int64_t) { job.work(worker); });
  } else {
    pool().run(threads, &job);
  }
  if (job.failed) std::rethrow_exception(job.failure);
}

}  // namespace fastunlearn
