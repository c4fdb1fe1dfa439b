#include "cpu/arena.h"

#include <mutex>
#include <utility>

#include "cpu/tuning.h"

namespace fastunlearn {
namespace {

// Never destroyed: threads may give pages back while the process ends. Nobody waits for the lock: a
// fork may have left it taken for ever. All its places are made at once, so that giving a page back
// cannot fail: destructors do it.
struct Shelf {
  Shelf() { pages.reserve(kKeptPages); }

  std::mutex mutex;
  std::vector<Page> pages;
};

Shelf& shelf() {
  static Shelf* const only = new Shelf;
  return *only;
}

}  // namespace

Page take_page() {
  const std::unique_lock<std::mutex> lock(shelf().mutex, std::try_to_lock);
  if (!lock.owns_lock() || shelf().pages.empty()) return Page(new char[kPageBytes]);
  Page page = std::move(shelf().pages.back());
  shelf().pages.pop_back();
  return page;
}

void give_page(Page page) {
  const std::unique_lock<std::mutex> lock(shelf().mutex, std::try_to_lock);
  if (lock.owns_lock() && shelf().pages.size() < kKeptPages)
    shelf().pages.push_back(std::move(page));
}

}  // namespace fastunlearn
