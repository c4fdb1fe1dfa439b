// Parallel loops on borrowed threads, or on a persistent pool that survives a fork.
#ifndef FASTUNLEARN_CPU_POOL_H_
#define FASTUNLEARN_CPU_POOL_H_

#include <cstdint>

namespace fastunlearn {

// A callable by reference, alive for the call only.
class TaskRef {
 public:
  template <class Function>
  TaskRef(const Function& function)  // NOLINT: implicit on purpose
      : object_(&function), call_([](const void* object, int worker, int64_t task) {
          (*static_cast<const Function*>(object))(worker, task);
        }) {}

  void operator()(int worker, int64_t task) const { call_(object_, worker, task); }

 private:
  const void* object_;
  void (*call_)(const void*, int, int64_t);
};

// Run body(worker, task) for every task in [0, num_tasks), each once, on up to `threads` threads
// (the caller is one of them) in any order; worker is in [0, threads). Arithmetic inside is IEEE:
// a flush-to-zero mode of the caller is suspended. Returns when all are done. The first exception
// is thrown again here; tasks not begun by then are left out.
void parallel_for(int threads, int64_t num_tasks, TaskRef body);

// Runs body(worker, 0) for every worker in [0, threads), on threads of its own choice.
using Runner = void (*)(int threads, TaskRef body);

// Makes parallel_for borrow the threads of another library instead of keeping its own. Where that
// library's idle threads spin, threads beside them would have to share their cores. A forked child
// goes back to threads of its own: others' do not survive a fork.
void borrow_threads(Runner runner);

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CPU_POOL_H_
