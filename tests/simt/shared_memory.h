// Where the shared arrays of a block lie.
#ifndef FASTUNLEARN_TESTS_SIMT_SHARED_MEMORY_H_
#define FASTUNLEARN_TESTS_SIMT_SHARED_MEMORY_H_

#include <link.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace simt {

// The thread-local variables of the program or library that holds this file and the kernels: these
// are the shared arrays. Whatever else is among them gets its value back when a launch ends.
class SharedMemory {
 public:
  static constexpr uint8_t kPoison = 0xA5;

  SharedMemory() {
    static thread_local char anchor;
    inside_ = &anchor;
    dl_iterate_phdr(&SharedMemory::look, this);
    before_.resize(bytes_);
    save(&before_);
  }

  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  ~SharedMemory() { restore(before_); }

  std::vector<char> poison() const { return std::vector<char>(bytes_, static_cast<char>(kPoison)); }
  void save(std::vector<char>* image) const { std::memcpy(image->data(), begin_, bytes_); }
  void restore(const std::vector<char>& image) const { std::memcpy(begin_, image.data(), bytes_); }

 private:
  static int look(dl_phdr_info* info, size_t, void* self) {
    auto* shared = static_cast<SharedMemory*>(self);
    auto* begin = static_cast<char*>(info->dlpi_tls_data);
    for (int i = 0; begin != nullptr && i < info->dlpi_phnum; ++i) {
      const size_t bytes = info->dlpi_phdr[i].p_memsz;
      if (info->dlpi_phdr[i].p_type != PT_TLS) continue;
      if (shared->inside_ < begin || shared->inside_ >= begin + bytes) continue;
      shared->begin_ = begin;
      shared->bytes_ = bytes;
    }
    return shared->bytes_ != 0;
  }

  char* inside_;
  char* begin_ = nullptr;
  size_t bytes_ = 0;
  std::vector<char> before_;
};

}  // namespace simt

#endif  // FASTUNLEARN_TESTS_SIMT_SHARED_MEMORY_H_
