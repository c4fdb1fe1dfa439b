// Registration of the compiled kernels: torch tensors to the plain views of csrc/cpu, and back.
#include "binding/ops.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "binding/arguments.h"
#include "binding/backend.h"
#include "binding/ops_checks.h"
#include "cpu/counts.h"
#include "cpu/float_mode.h"
#include "cpu/pool.h"
#include "cpu/randomk.h"
#include "cpu/rms.h"
#include "cpu/topk.h"

namespace fastunlearn {
namespace {

using at::Tensor;
using at::TensorList;

// How every op runs: on torch's number of threads, in IEEE arithmetic from its first line on.
struct Run {
  IeeeMode mode;
  Execution execution{&kernels(simd_level()), at::get_num_threads()};
};

#ifdef _OPENMP
// One share for each worker: torch's own team, which is awake when an operation has just run.
void run_on_torch_threads(int threads, TaskRef body) {
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) body(static_cast<int>(worker), 0);
  });
}

void share_torch_threads() { borrow_threads(run_on_torch_threads); }
#else
void share_torch_threads() {}
#endif

TensorView view_of(const Tensor& tensor, void* data) {
  return TensorView(data, dtype_of(tensor), tensor.sizes().data(), tensor.strides().data(),
                    static_cast<int>(tensor.dim()));
}

TensorView read_view(const Tensor& tensor) {
  return view_of(tensor, const_cast<void*>(tensor.const_data_ptr()));
}

TensorView write_view(const Tensor& tensor) { return view_of(tensor, tensor.mutable_data_ptr()); }

// Arguments were checked; scores: empty for Random-k, which reads none.
std::vector<Parameter> parameters_of(TensorList weights, TensorList scores, at::IntArrayRef layout,
                                     bool written) {
  std::vector<Parameter> parameters;
  parameters.reserve(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    const TensorView weight = written ? write_view(weights[i]) : read_view(weights[i]);
    parameters.push_back({weight, scores.empty() ? weight : read_view(scores[i]),
                          segment_of(layout, i, weight.numel())});
  }
  return parameters;
}

Change change_of(const char* op, TensorList weights, const Tensor& scale, const Tensor& rng,
                 Name noise, Name update, bool allow_overflow) {
  check_scale(op, weights, scale);
  const Tensor values = scale.contiguous();
  const double* const begin = values.const_data_ptr<double>();
  const auto [mode, rounding] = lookup("update", update, kUpdates);
  return {std::vector<double>(begin, begin + values.numel()),
          rng_of(rng),
          lookup("noise", noise, kNoises),
          mode,
          rounding,
          allow_overflow};
}

// Every tensor whole; where in the index space does not matter.
std::vector<int64_t> whole_layout(TensorList weights) {
  std::vector<int64_t> layout;
  for (const Tensor& weight : weights) {
    const int64_t row = std::max<int64_t>(weight.numel(), 1);
    layout.insert(layout.end(), {0, row, row});
  }
  return layout;
}

TopK topk_of(const char* op, TensorList weights, TensorList scores, at::IntArrayRef k,
             bool per_tensor, Name score, Name nan, at::IntArrayRef layout, bool written) {
  const Ranking ranking = lookup("score", score, kScores);
  if (!ranking.by_weight) check_scores(op, weights, scores);
  check_counts(op, weights, k, per_tensor, total_numel(weights));
  check_layout(op, weights, layout);
  return {parameters_of(weights, ranking.by_weight ? weights : scores, layout, written), k.vec(),
          per_tensor, ranking.kind, lookup("nan", nan, kNanRules)};
}

RandomK randomk_of(const char* op, TensorList weights, const Tensor& rng, at::IntArrayRef k,
                   bool per_tensor, at::IntArrayRef layout, int64_t total, bool written) {
  check_counts(op, weights, k, per_tensor, total);
  check_layout(op, weights, layout);
  if (!per_tensor) check_total(op, weights, layout, total);
  return {parameters_of(weights, {}, layout, written), k.vec(), per_tensor, total, rng_of(rng)};
}

bool refused(const Tensor& stats, bool allow_overflow) {
  const int64_t* const rows = stats.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < stats.size(0); ++i) {
    const int64_t* const row = rows + i * kStatColumns;
    if (row[kStatNan] != 0 || (row[kStatOverflow] != 0 && !allow_overflow)) return true;
  }
  return false;
}

std::vector<Tensor> empty_packed(TensorList weights, std::vector<uint8_t*>* data) {
  std::vector<Tensor> packed;
  for (const Tensor& weight : weights) {
    packed.push_back(at::empty({(weight.numel() + 7) / 8}, at::kByte));
    data->push_back(packed.back().mutable_data_ptr<uint8_t>());
  }
  return packed;
}

Tensor run_topk_perturb_(TensorList weights, TensorList scores, const Tensor& scale,
                         const Tensor& rng, at::IntArrayRef k, bool per_tensor, Name score,
                         Name nan, Name noise, Name update, bool allow_overflow,
                         at::IntArrayRef layout) {
  const Run run;
  constexpr char kOp[] = "topk_perturb_";
  const Change change = change_of(kOp, weights, scale, rng, noise, update, allow_overflow);
  const TopK topk = topk_of(kOp, weights, scores, k, per_tensor, score, nan, layout, true);
  const Tensor stats = empty_stats(weights, at::kCPU);
  topk_perturb(topk, change, run.execution, stats.mutable_data_ptr<int64_t>());
  if (!refused(stats, allow_overflow)) bump_versions(weights);
  return stats;
}

std::tuple<std::vector<Tensor>, Tensor> run_topk_select(TensorList weights, TensorList scores,
                                                        at::IntArrayRef k, bool per_tensor,
                                                        Name score, Name nan,
                                                        at::IntArrayRef layout) {
  const Run run;
  const TopK topk =
      topk_of("topk_select", weights, scores, k, per_tensor, score, nan, layout, false);
  const Tensor stats = empty_stats(weights, at::kCPU);
  std::vector<uint8_t*> data;
  std::vector<Tensor> packed = empty_packed(weights, &data);
  topk_select(topk, run.execution, data, stats.mutable_data_ptr<int64_t>());
  return {std::move(packed), stats};
}

Tensor run_randomk_perturb_(TensorList weights, const Tensor& scale, const Tensor& rng,
                            at::IntArrayRef k, bool per_tensor, Name noise, Name update,
                            bool allow_overflow, at::IntArrayRef layout, int64_t total) {
  const Run run;
  constexpr char kOp[] = "randomk_perturb_";
  const Change change = change_of(kOp, weights, scale, rng, noise, update, allow_overflow);
  const RandomK randomk = randomk_of(kOp, weights, rng, k, per_tensor, layout, total, true);
  const Tensor stats = empty_stats(weights, at::kCPU);
  randomk_perturb(randomk, change, run.execution, stats.mutable_data_ptr<int64_t>());
  if (!refused(stats, allow_overflow)) bump_versions(weights);
  return stats;
}

std::tuple<std::vector<Tensor>, Tensor> run_randomk_select(TensorList weights, const Tensor& rng,
                                                           at::IntArrayRef k, bool per_tensor,
                                                           at::IntArrayRef layout, int64_t total) {
  const Run run;
  const RandomK randomk =
      randomk_of("randomk_select", weights, rng, k, per_tensor, layout, total, false);
  const Tensor stats = empty_stats(weights, at::kCPU);
  std::vector<uint8_t*> data;
  std::vector<Tensor> packed = empty_packed(weights, &data);
  randomk_select(randomk, run.execution, data, stats.mutable_data_ptr<int64_t>());
  return {std::move(packed), stats};
}

// Arguments of a histogram; row: for each tensor, first: for each row.
Counted counted_of(const char* op, TensorList weights, TensorList scores, Name score, Name nan,
                   at::IntArrayRef row, at::IntArrayRef layout) {
  const Ranking ranking = lookup("score", score, kScores);
  if (!ranking.by_weight) check_scores(op, weights, scores);
  return {parameters_of(weights, ranking.by_weight ? weights : scores, layout, false), row.vec(),
          ranking.kind, lookup("nan", nan, kNanRules)};
}

Tensor run_key_histogram(TensorList weights, TensorList scores, Name score, Name nan,
                         at::IntArrayRef row, at::IntArrayRef low, int64_t shift, int64_t bins) {
  const Run run;
  constexpr char kOp[] = "key_histogram";
  check_bins(kOp, weights, row, low, shift, bins);
  const std::vector<int64_t> layout = whole_layout(weights);
  const Counted counted = counted_of(kOp, weights, scores, score, nan, row, layout);
  const Tensor counts = at::empty({static_cast<int64_t>(low.size()), bins + 1}, at::kLong);
  key_histogram(counted, {low.vec(), static_cast<int>(shift), bins}, run.execution,
                counts.mutable_data_ptr<int64_t>());
  return counts;
}

Tensor run_tie_histogram(TensorList weights, TensorList scores, Name score, Name nan,
                         at::IntArrayRef row, at::IntArrayRef key, at::IntArrayRef first,
                         int64_t shift, int64_t bins, at::IntArrayRef layout) {
  const Run run;
  constexpr char kOp[] = "tie_histogram";
  check_bins(kOp, weights, row, first, shift, bins);
  check_bins(kOp, weights, row, key, shift, bins);
  check_layout(kOp, weights, layout);
  const Counted counted = counted_of(kOp, weights, scores, score, nan, row, layout);
  const Tensor counts = at::empty({static_cast<int64_t>(key.size()), bins}, at::kLong);
  tie_histogram(counted, key.vec(), {first.vec(), static_cast<int>(shift), bins}, run.execution,
                counts.mutable_data_ptr<int64_t>());
  return counts;
}

Tensor run_noise(const Tensor& index, const Tensor& rng, Name kind) {
  const Run run;
  const Tensor flat = index.contiguous();
  const Tensor out = at::empty(index.sizes(), at::kFloat);
  noise_at(reinterpret_cast<const uint64_t*>(flat.const_data_ptr<int64_t>()), flat.numel(),
           rng_of(rng), lookup("noise", kind, kNoises), run.execution,
           out.mutable_data_ptr<float>());
  return out;
}

Tensor run_rms(TensorList tensors) {
  const Run run;
  std::vector<Parameter> views;
  for (const Tensor& tensor : tensors) {
    const TensorView view = read_view(tensor);
    views.push_back({view, view, {0, view.numel(), view.numel(), view.numel()}});
  }
  const Tensor out = at::empty({static_cast<int64_t>(tensors.size())}, at::kDouble);
  rms(views, run.execution, out.mutable_data_ptr<double>());
  return out;
}

torch::Library make_library() {
  torch::Library library = MAKE_TORCH_LIBRARY_IMPL(fastunlearn, CPU);
  library.impl("topk_perturb_", &run_topk_perturb_);
  library.impl("topk_select", &run_topk_select);
  library.impl("randomk_perturb_", &run_randomk_perturb_);
  library.impl("randomk_select", &run_randomk_select);
  library.impl("key_histogram", &run_key_histogram);
  library.impl("tie_histogram", &run_tie_histogram);
  library.impl("noise", &run_noise);
  library.impl("rms", &run_rms);
  return library;
}

}  // namespace

void register_ops() {
  static const torch::Library library = make_library();
  share_torch_threads();
}

}  // namespace fastunlearn
