// Top-K and Random-k by sorting and counting: what the CPU code has to do, in the plainest way.
#ifndef FASTUNLEARN_TESTS_CXX_ORACLE_H_
#define FASTUNLEARN_TESTS_CXX_ORACLE_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/keys.h"
#include "core/noise.h"
#include "core/permutation.h"
#include "cpu/randomk.h"
#include "cpu/topk.h"
#include "generate.h"

namespace fastunlearn::testing {

using Bytes = std::vector<unsigned char>;

// A tensor that owns its memory, of exactly the size that its strides span.
struct Tensor {
  DType dtype = DType::kFloat32;
  std::vector<int64_t> sizes, strides;
  Bytes memory;

  int64_t numel() const {
    int64_t product = 1;
    for (const int64_t size : sizes) product *= size;
    return product;
  }

  // Elements between the first and the last, both included.
  int64_t extent() const {
    if (numel() == 0) return 0;
    int64_t last = 0;
    for (size_t d = 0; d < sizes.size(); ++d) last += (sizes[d] - 1) * strides[d];
    return last + 1;
  }

  unsigned char* address(int64_t local) {
    int64_t offset = 0;
    for (size_t d = sizes.size(); d-- > 0; local /= sizes[d]) {
      offset += local % sizes[d] * strides[d];
    }
    return memory.data() + offset * item_bytes(dtype);
  }

  // Calls body with a copy of one element, in its own type.
  template <class Body>
  auto with(int64_t local, Body body) {
    const unsigned char* const from = address(local);
    return dispatch(dtype, [&](auto* type) {
      std::remove_pointer_t<decltype(type)> value;
      std::memcpy(&value, from, sizeof(value));
      return body(value);
    });
  }

  float fp32(int64_t local) {
    return with(local, [](auto value) { return to_float32(value); });
  }

  TensorView view() {
    return {memory.data(), dtype, sizes.data(), strides.data(), static_cast<int>(sizes.size())};
  }
};

struct Item {
  Tensor weight, score;
  Segment segment;
};

struct Request {
  std::vector<Item> items;
  std::vector<int64_t> k;
  bool per_tensor = false;
  ScoreKind score = ScoreKind::kPlain;
  NanRule nan = NanRule::kError;
  int64_t total = 0;
  Change change;

  int64_t numel() const {
    int64_t sum = 0;
    for (const Item& item : items) sum += item.weight.numel();
    return sum;
  }

  std::vector<Parameter> parameters() {
    std::vector<Parameter> out;
    for (Item& item : items) out.push_back({item.weight.view(), item.score.view(), item.segment});
    return out;
  }
};

struct Element {
  uint32_t key;
  int64_t index;
  int item;
  int64_t local;
};

// What a call should leave behind.
struct Outcome {
  std::vector<Bytes> memory;  // of each weight
  std::vector<Bytes> packed;  // bits of each weight
  std::vector<int64_t> stats;

  int64_t& stat(size_t item, Stat column) { return stats[item * kStatColumns + column]; }
};

inline std::vector<Element> elements(Request* request, int item) {
  std::vector<Element> out;
  Item& from = request->items[item];
  const int64_t numel = from.weight.numel();
  for (int64_t local = 0; local < numel; ++local) {
    const float score = score_of(request->score, from.weight.fp32(local), from.score.fp32(local));
    const int64_t index = from.segment.to_global(local);
    out.push_back({key_of(score, request->nan), index, item, local});
  }
  return out;
}

inline Outcome untouched(const Request& request) {
  Outcome out;
  out.stats.resize(request.items.size() * kStatColumns);
  for (const Item& item : request.items) {
    out.memory.push_back(item.weight.memory);
    out.packed.emplace_back((item.weight.numel() + 7) / 8);
  }
  return out;
}

// Notes one selected element: its bit, its new value, its counts.
inline void take(Request* request, const Element& element, Outcome* out) {
  Item& item = request->items[element.item];
  const Change& wanted = request->change;
  const float z = noise_of(wanted.noise, word_of(element.index, kStreamNoise, wanted.rng));
  const uint32_t word = word_of(element.index, kStreamRounding, wanted.rng);
  const RowChange change{wanted.scale[element.item], wanted.mode, wanted.rounding};
  unsigned char* const origin = item.weight.memory.data();
  unsigned char* const to =
      out->memory[element.item].data() + (item.weight.address(element.local) - origin);
  Tally tally;
  item.weight.with(element.local, [&](auto old) {
    const auto fresh = updated(old, z, word, change, &tally);
    std::memcpy(to, &fresh, sizeof(fresh));
  });
  out->packed[element.item][element.local / 8] |=
      static_cast<unsigned char>(1 << element.local % 8);
  out->stat(element.item, kStatSelected) += 1;
  out->stat(element.item, kStatOverflow) += tally.overflow;
  out->stat(element.item, kStatUnchanged) += tally.unchanged;
}

// Takes back every write where one of them overflowed and that is refused.
inline void refuse_overflow(const Request& request, Outcome* out) {
  int64_t overflow = 0;
  for (size_t i = 0; i < request.items.size(); ++i) overflow += out->stat(i, kStatOverflow);
  if (request.change.allow_overflow || overflow == 0) return;
  out->memory = untouched(request).memory;
}

// The first k elements by (key descending, index ascending).
inline void take_first(Request* request, std::vector<Element> all, int64_t k, size_t begin,
                       size_t end, Outcome* out) {
  std::sort(all.begin(), all.end(), [](const Element& a, const Element& b) {
    return a.key != b.key ? a.key > b.key : a.index < b.index;
  });
  int64_t threshold = -1, ties = 0, taken = 0;
  if (k > 0) {
    threshold = all[k - 1].key;
    for (int64_t i = 0; i < static_cast<int64_t>(all.size()); ++i) {
      ties += all[i].key == threshold;
      taken += all[i].key == threshold && i < k;
    }
  }
  for (size_t i = begin; i < end; ++i) {
    out->stat(i, kStatThreshold) = threshold;
    out->stat(i, kStatTies) = ties;
    out->stat(i, kStatTiesTaken) = taken;
  }
  for (int64_t i = 0; i < k; ++i) take(request, all[i], out);
}

inline Outcome expected_topk(Request* request) {
  const int count = static_cast<int>(request->items.size());
  Outcome out = untouched(*request);
  bool refused = false;
  std::vector<std::vector<Element>> all;
  for (int i = 0; i < count; ++i) {
    all.push_back(elements(request, i));
    for (const Element& element : all.back()) {
      out.stat(i, kStatNan) += element.key > kInfinityKey && request->nan == NanRule::kError;
    }
    refused = refused || out.stat(i, kStatNan) > 0;
  }
  if (refused) return out;
  if (request->per_tensor) {
    for (int i = 0; i < count; ++i) take_first(request, all[i], request->k[i], i, i + 1, &out);
  } else {
    std::vector<Element> joined;
    for (const auto& part : all) joined.insert(joined.end(), part.begin(), part.end());
    take_first(request, joined, request->k[0], 0, count, &out);
  }
  refuse_overflow(*request, &out);
  return out;
}

inline Outcome expected_randomk(Request* request) {
  Outcome out = untouched(*request);
  std::vector<Element> places;  // by flat index
  for (int i = 0; i < static_cast<int>(request->items.size()); ++i) {
    out.stat(i, kStatThreshold) = -1;
    const std::vector<Element> part = elements(request, i);
    places.insert(places.end(), part.begin(), part.end());
  }
  const auto before = [](const Element& a, const Element& b) { return a.index < b.index; };
  std::sort(places.begin(), places.end(), before);
  const auto draw = [&](int64_t base, int64_t size, int64_t k) {
    if (k == 0) return;
    const Permutation permutation = Permutation::make(size, request->change.rng, base);
    for (int64_t x = 0; x < k; ++x) {
      const Element image{0, base + static_cast<int64_t>(permutation(x)), 0, 0};
      const auto found = std::lower_bound(places.begin(), places.end(), image, before);
      if (found != places.end() && found->index == image.index) take(request, *found, &out);
    }
  };
  if (request->per_tensor) {
    for (size_t i = 0; i < request->items.size(); ++i) {
      draw(request->items[i].segment.base, request->items[i].segment.numel, request->k[i]);
    }
  } else {
    draw(0, request->total, request->k[0]);
  }
  refuse_overflow(*request, &out);
  return out;
}

}  // namespace fastunlearn::testing

#endif  // FASTUNLEARN_TESTS_CXX_ORACLE_H_
