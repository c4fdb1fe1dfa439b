// Where the elements of a piece of memory lie in the flat index space of the whole model.
#ifndef FASTUNLEARN_CORE_SEGMENT_H_
#define FASTUNLEARN_CORE_SEGMENT_H_

#include <cstdint>

#include "core/divide.h"
#include "core/platform.h"

namespace fastunlearn {

// Local element l has the flat index base + (l / row_len) * row_stride + l % row_len. A whole
// tensor is one row; a shard keeps the indices that its elements have in the full tensor.
struct Segment {
  int64_t base;
  int64_t row_len;
  int64_t row_stride;
  int64_t numel;

  FASTUNLEARN_HD bool one_row() const { return row_len >= numel; }

  FASTUNLEARN_HD int64_t to_global(int64_t local) const {
    if (one_row()) return base + local;
    const int64_t row = divide(local, row_len);
    return base + row * row_stride + (local - row * row_len);
  }

  // Local number of a flat index >= base, or -1 where it lies between rows or past the end.
  FASTUNLEARN_HD int64_t to_local(int64_t index) const {
    const int64_t relative = index - base;
    if (one_row()) return relative < numel ? relative : -1;
    const int64_t row = divide(relative, row_stride);
    const int64_t column = relative - row * row_stride;
    if (column >= row_len) return -1;
    const int64_t local = row * row_len + column;
    return local < numel ? local : -1;
  }

  // Number of elements whose flat index is below `index`; they are the first ones.
  FASTUNLEARN_HD int64_t count_below(int64_t index) const {
    if (index <= base) return 0;
    const int64_t relative = index - base;
    if (one_row()) return relative < numel ? relative : numel;
    const int64_t row = divide(relative, row_stride);
    const int64_t column = relative - row * row_stride;
    const int64_t count = row * row_len + (column < row_len ? column : row_len);
    return count < numel ? count : numel;
  }

  // One past the flat index of the last element.
  FASTUNLEARN_HD int64_t end() const { return numel == 0 ? base : to_global(numel - 1) + 1; }
};

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CORE_SEGMENT_H_
