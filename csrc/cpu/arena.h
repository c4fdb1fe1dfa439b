// Bump allocation of plain data for one thread, freed as a whole.
#ifndef FASTUNLEARN_CPU_ARENA_H_
#define FASTUNLEARN_CPU_ARENA_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace fastunlearn {

using Page = std::unique_ptr<char[]>;
inline constexpr size_t kPageBytes = size_t{1} << 20;

// A page of kPageBytes, uninitialised: one that an arena has given back, or a new one.
Page take_page();
// Keeps a page for later calls, up to kKeptPages of them; fresh ones cost a page fault every 4 KiB.
void give_page(Page page);

class Arena {
 public:
  Arena() = default;
  Arena(Arena&&) = default;
  ~Arena() {
    for (Page& page : pages_) give_page(std::move(page));
  }

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
  void grow(size_t bytes) {
    const bool large = bytes > kPageBytes;
    std::vector<Page>& home = large ? large_ : pages_;
    home.push_back(large ? Page(new char[bytes]) : take_page());
    next_ = home.back().get();
    left_ = large ? bytes : kPageBytes;
  }

  std::vector<Page> pages_, large_;
  char* next_ = nullptr;
  size_t left_ = 0;
};

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CPU_ARENA_H_
