// One piece of device memory, dealt out.
#ifndef FASTUNLEARN_CUDA_WORKSPACE_H_
#define FASTUNLEARN_CUDA_WORKSPACE_H_

#include <cstddef>
#include <cstdint>

namespace fastunlearn::cuda {

// Deals out one allocation in aligned parts. With a null base it only counts: each entry point
// first says how many bytes it needs, and its caller allocates them.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    constexpr size_t kAlignment = 256;
    const size_t begin = bytes_;
    bytes_ += (static_cast<size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + begin);
  }

  size_t bytes() const { return bytes_; }

 private:
  char* const base_;
  size_t bytes_ = 0;
};

}  // namespace fastunlearn::cuda

#endif  // FASTUNLEARN_CUDA_WORKSPACE_H_
