// Bump allocation of plain data for one thread, freed as a whole.
#ifndef FASTUNLEARN_CPU_ARENA_H_
#define FASTUNLEARN_CPU_ARENA_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace fastunlearn {

class Arena {
 public:
  // Uninitialised room for `count` values.
  template <class T>
  T* allocate(size_t count) {
    const size_t bytes = (count * sizeof(T) + 7) / 8 * 8;
    if (bytes > left_) grow(bytes);
    T* const out = reinterpret_cast<T*>(next_);
    next_ += bytes;
    left_ -= bytes;
    return out;
  }

 private:
  static constexpr size_t kPage = size_t{1} << 20;

  // Blocks double up to a page, so that a small call takes little.
  void grow(size_t bytes) {
    size_ = size_ == 0 ? size_t{1} << 14 : (size_ < kPage ? size_ * 4 : kPage);
    left_ = bytes > size_ ? bytes : size_;
    pages_.emplace_back(new char[left_]);
    next_ = pages_.back().get();
  }

  std::vector<std::unique_ptr<char[]>> pages_;
  char* next_ = nullptr;
  size_t left_ = 0, size_ = 0;
};

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CPU_ARENA_H_
