// Segment: local to flat index and back, against a table that is filled by counting alone.
#include "core/segment.h"

#include <cstdint>
#include <vector>

#include "check.h"

namespace {

using fastunlearn::Segment;
using fastunlearn::testing::equal;
using fastunlearn::testing::holds;

// Flat index of every local element, found by walking the rows.
std::vector<int64_t> walk(const Segment& segment) {
  std::vector<int64_t> table;
  int64_t row_start = segment.base, column = 0;
  for (int64_t i = 0; i < segment.numel; ++i) {
    table.push_back(row_start + column);
    if (++column == segment.row_len) {
      row_start += segment.row_stride;
      column = 0;
    }
  }
  return table;
}

void check(const Segment& segment) {
  const std::vector<int64_t> table = walk(segment);
  holds(segment.one_row() == (segment.row_len >= segment.numel), "one_row", segment.row_len);
  const int64_t end = table.empty() ? segment.base : table.back() + 1;
  equal(segment.end(), end, "end", segment.numel);
  size_t next = 0;  // of the table; its indices ascend
  for (int64_t index = segment.base; index < end + 2 * segment.row_stride; ++index) {
    const bool here = next < table.size() && table[next] == index;
    const int64_t local = here ? static_cast<int64_t>(next) : -1;
    equal(segment.to_local(index), local, "to_local", index);
    if (!here) continue;
    equal(segment.to_global(local), index, "to_global", local);
    ++next;
  }
  equal(next, table.size(), "elements met", segment.numel);
}

void check_large() {
  // 3 rows of 2^32 + 1 of a tensor whose rows hold 2^33, far up in the index space.
  const int64_t base = (int64_t{1} << 45) + 7, row_len = (int64_t{1} << 32) + 1;
  const int64_t row_stride = int64_t{1} << 33;
  const Segment segment{base, row_len, row_stride, 3 * row_len};
  for (int64_t row = 0; row < 3; ++row) {
    for (const int64_t column : {int64_t{0}, int64_t{1}, row_len - 2, row_len - 1}) {
      const int64_t index = base + row * row_stride + column;
      equal(segment.to_global(row * row_len + column), index, "to_global, large", index);
      equal(segment.to_local(index), row * row_len + column, "to_local, large", index);
    }
    equal(segment.to_local(base + row * row_stride + row_len), -1, "gap, large", row);
  }
  equal(segment.to_local(base + 3 * row_stride), -1, "past the end, large");
  equal(segment.end(), base + 2 * row_stride + row_len, "end, large");
}

}  // namespace

int main() {
  for (const int64_t base : {int64_t{0}, int64_t{5}, (int64_t{1} << 40) + 3}) {
    for (int64_t row_len = 1; row_len <= 8; ++row_len) {
      for (int64_t gap = 0; gap <= 5; ++gap) {
        for (int64_t numel = 0; numel <= 33; ++numel) check({base, row_len, row_len + gap, numel});
      }
    }
  }
  check_large();
  return fastunlearn::testing::finish();
}
