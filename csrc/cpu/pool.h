// A persistent pool of threads, of its own so that a fork or another OpenMP library cannot hang it.
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

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CPU_POOL_H_
