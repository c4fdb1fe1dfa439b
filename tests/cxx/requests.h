// Random requests: lists of tensors of every kind that a call may bring.
#ifndef FASTUNLEARN_TESTS_CXX_REQUESTS_H_
#define FASTUNLEARN_TESTS_CXX_REQUESTS_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "oracle.h"

namespace fastunlearn::testing {

// How the values of a tensor look.
enum class Flavour { kNumbers, kTies, kEqual, kZeros, kAnything };

inline constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat64, DType::kBFloat16,
                                    DType::kFloat16};

template <class T>
std::vector<T> flavoured(Draw* draw, int64_t count, Flavour flavour) {
  std::vector<T> out =
      flavour == Flavour::kAnything ? values<T>(draw, count) : numbers<T>(draw, count);
  for (T& x : out) {
    if (flavour == Flavour::kTies) x = narrow<T>(draw->below(7) * 0.25 - 0.75);
    if (flavour == Flavour::kEqual) x = narrow<T>(draw->below(2) == 0 ? 0.5 : -0.5);
    if (flavour == Flavour::kZeros) x = narrow<T>(draw->below(10) < 7 ? 0.0 : to_float32(x));
  }
  return out;
}

inline void fill(Draw* draw, Flavour flavour, Tensor* tensor) {
  const int64_t count = tensor->extent();
  dispatch(tensor->dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const std::vector<T> found = flavoured<T>(draw, count, flavour);
    tensor->memory.resize(found.size() * sizeof(T));
    if (count > 0) std::memcpy(tensor->memory.data(), found.data(), tensor->memory.size());
  });
}

// Gives a tensor a shape of `numel` elements: contiguous, with sizes of 1, every third element, or
// transposed where it divides.
inline void shape(Draw* draw, int64_t numel, Tensor* tensor) {
  switch (draw->below(6)) {
    case 0:
      tensor->sizes = {1, numel, 1};
      tensor->strides = {5, 1, 9};
      return;
    case 1:
      tensor->sizes = {numel};
      tensor->strides = {3};
      return;
    case 2:
      if (numel % 5 != 0) break;
      tensor->sizes = {5, numel / 5};
      tensor->strides = {1, 5};
      return;
    case 3:
      if (numel % 4 != 0) break;
      tensor->sizes = {2, numel / 4, 2};
      tensor->strides = {numel / 2 + 3, 2, 1};
      return;
    default:
      break;
  }
  tensor->sizes = {numel};
  tensor->strides = {1};
}

inline Item make_item(Draw* draw, int64_t numel, Flavour flavour) {
  Item item;
  for (Tensor* tensor : {&item.weight, &item.score}) {
    tensor->dtype = kDTypes[draw->below(4)];
    shape(draw, numel, tensor);
    fill(draw, flavour, tensor);
  }
  return item;
}

// Places the items in the index space: one after the other with gaps, as rows of a wider matrix, or
// as columns that two of them share row by row; in the end perhaps in reverse order.
inline void place(Draw* draw, bool rows, Request* request) {
  int64_t next = draw->below(3) == 0 ? (int64_t{1} << 33) + 5 : draw->below(10);
  for (Item& item : request->items) {
    const int64_t numel = item.weight.numel();
    const int64_t row_len =
        rows && draw->below(2) == 0 ? 1 + draw->below(40) : std::max<int64_t>(numel, 1);
    item.segment = {next, row_len, row_len + draw->below(5), numel};
    next = item.segment.end() + draw->below(4);
  }
  request->total = next + draw->below(3);
  if (rows && request->items.size() >= 2) {
    Segment& left = request->items[0].segment;
    Segment& right = request->items[1].segment;
    const int64_t columns = left.row_len + 3;
    left = {request->total, left.row_len, columns, left.numel};
    right = {request->total + left.row_len, 3, columns, right.numel};
    request->total = std::max(left.end(), right.end());
  }
  if (draw->below(3) == 0) std::reverse(request->items.begin(), request->items.end());
}

inline int64_t some_count(Draw* draw, int64_t n) {
  switch (draw->below(6)) {
    case 0:
      return 0;
    case 1:
      return n;
    case 2:
      return n / 2;
    case 3:
      return n / 100;
    default:
      return draw->below(static_cast<uint32_t>(n) + 1);
  }
}

inline Change some_change(Draw* draw, size_t items) {
  constexpr double kScales[] = {0.1, 0.1, 1e-3, 1e-42, 5e4, 3e38, 1e300, 0.0};
  Change change;
  for (size_t i = 0; i < items; ++i) change.scale.push_back(kScales[draw->below(8)]);
  if (draw->below(2) == 0) change.scale.assign(items, 0.1);
  change.rng = {uint64_t{draw->word()} << 32 | draw->word(), draw->word()};
  change.noise = static_cast<NoiseKind>(draw->below(3));
  change.mode = static_cast<UpdateMode>(draw->below(6) < 4 ? 0 : 1 + draw->below(2));
  change.rounding = static_cast<Rounding>(draw->below(2));
  change.allow_overflow = draw->below(2) == 0;
  return change;
}

// A request of up to six tensors of the given sizes.
inline Request make_request(uint64_t seed, const std::vector<int64_t>& numels, bool randomk) {
  Draw draw(seed);
  Request request;
  const auto flavour = static_cast<Flavour>(draw.below(5));
  for (const int64_t numel : numels) request.items.push_back(make_item(&draw, numel, flavour));
  request.per_tensor = draw.below(3) == 0;
  // A tensor that Random-k draws from by itself has to be whole.
  place(&draw, !(randomk && request.per_tensor) && draw.below(2) == 0, &request);
  request.score = static_cast<ScoreKind>(draw.below(3));
  request.nan = static_cast<NanRule>(draw.below(3));
  request.change = some_change(&draw, numels.size());
  if (request.per_tensor) {
    for (const Item& item : request.items) {
      request.k.push_back(some_count(&draw, item.weight.numel()));
    }
  } else {
    request.k = {some_count(&draw, request.numel())};
  }
  return request;
}

}  // namespace fastunlearn::testing

#endif  // FASTUNLEARN_TESTS_CXX_REQUESTS_H_
