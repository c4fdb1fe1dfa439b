// Checks of the operations' arguments, on whatever device. fastunlearn/targets.py has checked what
// comes through the Python functions; torch.ops takes anything, and sizes that do not fit would be
// read past their ends.
#ifndef FASTUNLEARN_BINDING_OPS_CHECKS_H_
#define FASTUNLEARN_BINDING_OPS_CHECKS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace fastunlearn {

// Each throws ValueError in the form "op: name must be ..., got ...".

// scores: one for each weight, of as many elements.
void check_scores(const char* op, at::TensorList weights, at::TensorList scores);

// scale: one number for each weight.
void check_scale(const char* op, at::TensorList weights, const at::Tensor& scale);

// k: one count of at most `total`, or one for each weight where `per_tensor`.
void check_counts(const char* op, at::TensorList weights, at::IntArrayRef k, bool per_tensor,
                  int64_t total);

// layout: three numbers for each weight, rows that do not overlap.
void check_layout(const char* op, at::TensorList weights, at::IntArrayRef layout);

// total: no element of a checked layout lies beyond it.
void check_total(const char* op, at::TensorList weights, at::IntArrayRef layout, int64_t total);

// row: for each weight one of `rows` numbers of the result, whose first values are `first`; bins of
// 2^shift values that fit into int64.
void check_bins(const char* op, at::TensorList weights, at::IntArrayRef row, at::IntArrayRef first,
                int64_t shift, int64_t bins);

// Number of elements of all tensors.
int64_t total_numel(at::TensorList tensors);

}  // namespace fastunlearn

#endif  // FASTUNLEARN_BINDING_OPS_CHECKS_H_
