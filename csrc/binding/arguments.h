// The operations' arguments in the terms of csrc/core, for every backend. The schemas are defined
// in Python (fastunlearn/_ops.py).
#ifndef FASTUNLEARN_BINDING_ARGUMENTS_H_
#define FASTUNLEARN_BINDING_ARGUMENTS_H_

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cstddef>
#include <cstdint>

#include "core/keys.h"
#include "core/params.h"
#include "core/philox.h"
#include "core/segment.h"

namespace fastunlearn {

using Name = c10::string_view;

inline DType dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return DType::kFloat32;
    case at::kDouble:
      return DType::kFloat64;
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kHalf:
      return DType::kFloat16;
    default:
      TORCH_CHECK_TYPE(false, "fastunlearn: tensors must be float32, float64, bfloat16 or float16,",
                       " got ", tensor.scalar_type());
  }
}

// layout: base, row_len and row_stride of each tensor in turn.
inline Segment segment_of(at::IntArrayRef layout, size_t i, int64_t numel) {
  return {layout[3 * i], layout[3 * i + 1], layout[3 * i + 2], numel};
}

template <class Value>
struct Named {
  const char* name;
  Value value;
};

template <class Value, size_t kCount>
Value lookup(const char* what, Name name, const Named<Value> (&table)[kCount]) {
  for (const Named<Value>& entry : table) {
    if (name == entry.name) return entry.value;
  }
  TORCH_CHECK_VALUE(false, "fastunlearn: ", what, " must be one that the library has, got ", name);
}

// What to rank the elements by: the tensors to read, and what becomes of them.
struct Ranking {
  bool by_weight;
  ScoreKind kind;
};

inline constexpr Named<Ranking> kScores[] = {
    {"grad", {false, ScoreKind::kPlain}},
    {"fisher", {false, ScoreKind::kSquare}},
    {"taylor", {false, ScoreKind::kProduct}},
    {"weight", {true, ScoreKind::kPlain}},
};
inline constexpr Named<NanRule> kNanRules[] = {
    {"error", NanRule::kError}, {"largest", NanRule::kLargest}, {"smallest", NanRule::kSmallest}};
inline constexpr Named<NoiseKind> kNoises[] = {{"normal", NoiseKind::kNormal},
                                               {"uniform", NoiseKind::kUniform},
                                               {"laplace", NoiseKind::kLaplace}};

// What becomes of the selected weights.
struct Update {
  UpdateMode mode;
  Rounding rounding;
};

inline constexpr Named<Update> kUpdates[] = {
    {"add", {UpdateMode::kAdd, Rounding::kNearest}},
    {"replace", {UpdateMode::kReplace, Rounding::kNearest}},
    {"zero", {UpdateMode::kZero, Rounding::kNearest}},
    {"add_stochastic", {UpdateMode::kAdd, Rounding::kStochastic}},
    {"replace_stochastic", {UpdateMode::kReplace, Rounding::kStochastic}},
};

inline void check_rng(const at::Tensor& rng) {
  TORCH_CHECK_VALUE(rng.numel() == 2, "fastunlearn: rng must be 2 numbers, got ", rng.numel());
}

// rng: int64, shape (2,), on the CPU.
inline Rng rng_of(const at::Tensor& rng) {
  check_rng(rng);
  const at::Tensor values = rng.contiguous();
  const int64_t* const state = values.const_data_ptr<int64_t>();
  return {static_cast<uint64_t>(state[0]), static_cast<uint32_t>(state[1])};
}

inline at::Tensor empty_stats(at::TensorList weights, at::Device device) {
  return at::empty({static_cast<int64_t>(weights.size()), kStatColumns},
                   at::TensorOptions(device).dtype(at::kLong));
}

// Saved tensors are told that the weights have changed; inference tensors keep no version.
inline void bump_versions(at::TensorList weights) {
  for (const at::Tensor& weight : weights) {
    if (!weight.is_inference()) weight.unsafeGetTensorImpl()->bump_version();
  }
}

}  // namespace fastunlearn

#endif  // FASTUNLEARN_BINDING_ARGUMENTS_H_
