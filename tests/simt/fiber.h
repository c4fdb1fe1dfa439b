// A thread of execution with a stack of its own that one scheduler enters and that leaves by
// itself.
#ifndef FASTUNLEARN_TESTS_SIMT_FIBER_H_
#define FASTUNLEARN_TESTS_SIMT_FIBER_H_

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <new>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__) && !defined(SIMT_UCONTEXT)
#define SIMT_UCONTEXT  // the portable way; each switch is a system call
#endif
#ifdef SIMT_UCONTEXT
#include <ucontext.h>
#endif

namespace simt {

#ifdef SIMT_UCONTEXT
using Context = ucontext_t;

inline void exchange(Context* from, Context* to) { swapcontext(from, to); }

inline void prepare(Context* context, char* stack, size_t bytes, void (*entry)()) {
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = bytes;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
}
#else
// A stack pointer; below it lie the registers that a call preserves and where to go on.
using Context = void*;

// Saves the caller's context and goes on with another. A kernel leaves the rounding modes alone, so
// these are not exchanged.
__attribute__((naked, noinline)) inline void exchange(Context* /*from*/, Context* /*to*/) {
  asm("push %rbp\n\t"
      "push %rbx\n\t"
      "push %r12\n\t"
      "push %r13\n\t"
      "push %r14\n\t"
      "push %r15\n\t"
      "mov %rsp, (%rdi)\n\t"
      "mov (%rsi), %rsp\n\t"
      "pop %r15\n\t"
      "pop %r14\n\t"
      "pop %r13\n\t"
      "pop %r12\n\t"
      "pop %rbx\n\t"
      "pop %rbp\n\t"
      "pop %rax\n\t"  // not "ret", which the processor would expect to go back to the caller
      "jmp *%rax");
}

inline void prepare(Context* context, char* stack, size_t bytes, void (*entry)()) {
  // At a function's first instruction the stack is 8 bytes off a multiple of 16: the return
  // address, here none, was pushed.
  void** top = reinterpret_cast<void**>(stack + bytes);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  *context = top;
}
#endif

class Fiber {
 public:
  Fiber() {
    const size_t page = sysconf(_SC_PAGESIZE);
    constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* memory = mmap(nullptr, page + kStackBytes, PROT_READ | PROT_WRITE, kFlags, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, page, PROT_NONE);  // an overflow faults
    stack_ = static_cast<char*>(memory) + page;
    // Stacks would begin at one place of their page each and share a few sets of the cache.
    static size_t number = 0;
    bytes_ = kStackBytes - number++ % 32 * 128;
  }

  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Makes the next enter() begin `entry`, which must never return; what the fiber did is dropped.
  void start(void (*entry)()) {
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(stack_, bytes_);
    fake_stack_ = nullptr;
#endif
    prepare(&inside_, stack_, bytes_, entry);
  }

  // Runs the fiber until it leaves.
  void enter() {
#ifdef __SANITIZE_ADDRESS__
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, stack_, bytes_);
#endif
    exchange(&outside_, &inside_);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
  }

  // To be called first of all by `entry`.
  void entered() {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake_stack_, &outer_stack_, &outer_bytes_);
#endif
  }

  // Goes back to the scheduler; returns in the next enter(). The last one says so.
  void leave([[maybe_unused]] bool last = false) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(last ? nullptr : &fake_stack_, outer_stack_, outer_bytes_);
#endif
    exchange(&inside_, &outside_);
    entered();
  }

 private:
  static constexpr size_t kStackBytes = 256 << 10;  // of address space; few pages are ever touched

  Context inside_, outside_;
  char* stack_;
  size_t bytes_;
#ifdef __SANITIZE_ADDRESS__
  void* fake_stack_ = nullptr;
  const void* outer_stack_ = nullptr;
  size_t outer_bytes_ = 0;
#endif
};

}  // namespace simt

#endif  // FASTUNLEARN_TESTS_SIMT_FIBER_H_
