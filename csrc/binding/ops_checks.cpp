#include "binding/ops_checks.h"

#include "core/segment.h"

namespace fastunlearn {

void check_scores(const char* op, at::TensorList weights, at::TensorList scores) {
  TORCH_CHECK_VALUE(scores.size() == weights.size(), op, ": scores must be ", weights.size(),
                    " tensors, one for each weight, got ", scores.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    TORCH_CHECK_VALUE(scores[i].numel() == weights[i].numel(), op, ": scores[", i, "] must have ",
                      weights[i].numel(), " elements, got ", scores[i].numel());
  }
}

void check_scale(const char* op, at::TensorList weights, const at::Tensor& scale) {
  TORCH_CHECK_VALUE(scale.numel() == static_cast<int64_t>(weights.size()), op, ": scale must have ",
                    weights.size(), " elements, one for each weight, got ", scale.numel());
}

void check_counts(const char* op, at::TensorList weights, at::IntArrayRef k, bool per_tensor,
                  int64_t total) {
  const size_t wanted = per_tensor ? weights.size() : 1;
  TORCH_CHECK_VALUE(k.size() == wanted, op, ": k must be ", wanted, " counts, got ", k.size());
  for (size_t i = 0; i < k.size(); ++i) {
    const int64_t most = per_tensor ? weights[i].numel() : total;
    TORCH_CHECK_VALUE(0 <= k[i] && k[i] <= most, op, ": k[", i, "] must be between 0 and ", most,
                      ", got ", k[i]);
  }
}

void check_layout(const char* op, at::TensorList weights, at::IntArrayRef layout) {
  TORCH_CHECK_VALUE(layout.size() == 3 * weights.size(), op, ": layout must be ",
                    3 * weights.size(), " numbers, got ", layout.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    if (weights[i].numel() == 0) continue;
    const int64_t base = layout[3 * i], row_len = layout[3 * i + 1], stride = layout[3 * i + 2];
    TORCH_CHECK_VALUE(base >= 0 && 1 <= row_len && row_len <= stride, op, ": layout of weights[", i,
                      "] must be base >= 0 and 1 <= row_len <= row_stride, got ", base, ", ",
                      row_len, ", ", stride);
  }
}

void check_total(const char* op, at::TensorList weights, at::IntArrayRef layout, int64_t total) {
  for (size_t i = 0; i < weights.size(); ++i) {
    const Segment segment{layout[3 * i], layout[3 * i + 1], layout[3 * i + 2], weights[i].numel()};
    if (segment.numel == 0) continue;
    TORCH_CHECK_VALUE(segment.end() <= total, op, ": total must be at least ", segment.end(),
                      ", the end of weights[", i, "], got ", total);
  }
}

void check_bins(const char* op, at::TensorList weights, at::IntArrayRef row, at::IntArrayRef first,
                int64_t shift, int64_t bins) {
  constexpr int64_t kMostBins = int64_t{1} << 24, kMostShift = 38;
  TORCH_CHECK_VALUE(row.size() == weights.size(), op, ": row must be ", weights.size(),
                    " numbers, one for each weight, got ", row.size());
  for (const int64_t number : row) {
    TORCH_CHECK_VALUE(0 <= number && number < static_cast<int64_t>(first.size()), op,
                      ": row must be between 0 and ", first.size(), ", the number of rows, got ",
                      number);
  }
  TORCH_CHECK_VALUE(0 <= shift && shift <= kMostShift && 1 <= bins && bins <= kMostBins, op,
                    ": shift must be at most ", kMostShift, " and bins at most ", kMostBins,
                    ", got ", shift, " and ", bins);
}

int64_t total_numel(at::TensorList tensors) {
  int64_t total = 0;
  for (const at::Tensor& tensor : tensors) total += tensor.numel();
  return total;
}

}  // namespace fastunlearn
