// Registration of the CUDA kernels: torch tensors to the plain tables of csrc/cuda, and back.
//
// Nothing here waits for the device: statistics stay there, and a call that meets a NaN or an
// overflow that it refuses is known from them alone. So versions always rise.
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <utility>
#include <vector>

#include "binding/arguments.h"
#include "binding/device.h"
#include "binding/ops.h"
#include "binding/ops_checks.h"
#include "cuda/noise.h"
#include "cuda/randomk.h"
#include "cuda/topk.h"

namespace fastunlearn {
namespace {

using at::Tensor;
using at::TensorList;

// Memory that a table cannot describe has more than kMaxDims dimensions.
cuda::Memory memory_of(const Tensor& tensor, void* data) {
  cuda::Memory memory{data, dtype_of(tensor), 0, {}, {}};
  if (tensor.is_contiguous()) return memory;
  if (tensor.numel() > std::numeric_limits<uint32_t>::max()) {
    memory.dims = cuda::kMaxDims + 1;
    return memory;
  }
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    const auto size = static_cast<uint32_t>(tensor.size(d));
    const int64_t stride = tensor.stride(d);
    const int32_t last = memory.dims - 1;
    if (size == 1) continue;
    if (last >= 0 && memory.stride[last] == size * stride) {
      memory.size[last] *= size;
      memory.stride[last] = stride;
      continue;
    }
    if (memory.dims++ == cuda::kMaxDims) break;
    memory.size[last + 1] = size;
    memory.stride[last + 1] = stride;
  }
  return memory;
}

cuda::Memory read_memory(const Tensor& tensor) {
  return memory_of(tensor, const_cast<void*>(tensor.const_data_ptr()));
}

void check_topk(const char* op, TensorList weights, TensorList scores, at::IntArrayRef k,
                bool per_tensor, at::IntArrayRef layout) {
  check_scores(op, weights, scores);
  check_counts(op, weights, k, per_tensor, total_numel(weights));
  check_layout(op, weights, layout);
}

void check_randomk(const char* op, TensorList weights, at::IntArrayRef k, bool per_tensor,
                   at::IntArrayRef layout, int64_t total) {
  check_counts(op, weights, k, per_tensor, total);
  check_layout(op, weights, layout);
  if (!per_tensor) check_total(op, weights, layout, total);
}

// Arguments were checked; scores: empty for what reads none.
std::vector<cuda::Tensor> describe(TensorList weights, TensorList scores, at::IntArrayRef layout,
                                   bool written) {
  std::vector<cuda::Tensor> tensors(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    cuda::Tensor& tensor = tensors[i];
    tensor.weight =
        written ? memory_of(weights[i], weights[i].mutable_data_ptr()) : read_memory(weights[i]);
    tensor.score = scores.empty() ? tensor.weight : read_memory(scores[i]);
    tensor.segment = segment_of(layout, i, weights[i].numel());
  }
  return tensors;
}

bool is_on_device_type(const Tensor& tensor) { return tensor.device().type() == kDeviceType; }

// Whether the kernels serve a call. The reference serves the rest with the same bits, slower:
// - tensors elsewhere, in a call that came here because `rng` or `scale` is on a GPU;
// - memory of many dimensions that do not merge, or with gaps and 2^32 elements or more: an entry
//   of the table has a fixed size, and 64-bit divisions would slow all others down;
// - tensors that do not ascend in the flat index space, by which the kernels search the list;
// - Random-k in each tensor where that is a shard of several rows, hence no range of indices.
bool served(TensorList weights, TensorList scores, const std::vector<cuda::Tensor>& tensors,
            bool each_a_range) {
  const auto here = [](TensorList list) {
    return std::all_of(list.begin(), list.end(), is_on_device_type);
  };
  if (weights.empty() || !here(weights) || !here(scores)) return false;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const cuda::Tensor& tensor = tensors[i];
    if (std::max(tensor.weight.dims, tensor.score.dims) > cuda::kMaxDims) return false;
    if (each_a_range && !tensor.segment.one_row()) return false;
    if (i > 0 && tensors[i - 1].segment.end() > tensor.segment.base) return false;
  }
  return true;
}

// Statistics of the reference, which lie on the CPU, brought to where the kernels leave theirs.
Tensor bring_home(const Tensor& stats, TensorList weights) {
  return weights.empty() ? stats : stats.to(weights[0].device());
}

// Calls the reference, which is registered for all backends, and so for the one that is none.
template <class Return, class... Params, class... Args>
Return call_reference(const char* name, Return (*)(Params...), TensorList tensors,
                      const Args&... args) {
  for (const Tensor& tensor : tensors) {
    TORCH_CHECK_VALUE(tensor.device() == tensors[0].device(),
                      "fastunlearn: parameters on several devices must have at most ",
                      cuda::kMaxDims, " dimensions that do not merge, and ascending flat indices");
  }
  const auto operation =
      c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Return(Params...)>();
  return operation.redispatch(c10::DispatchKeySet(), args...);
}

// Where a call runs: on the device of its first tensor.
struct Run {
  explicit Run(at::Device where) : guard(where), place(where), device(current_device(where)) {}

  // Calls entry(workspace, &bytes) twice: to hear how much it needs, and to start it.
  template <class Entry>
  void operator()(const Entry& entry) const {
    refuse_earlier_error();
    size_t bytes = 0;
    check(entry(nullptr, &bytes));
    const Tensor room = allocate(bytes, place);
    check(entry(room.mutable_data_ptr(), &bytes));
  }

  // A tensor of the caller's, as the kernels read it.
  Tensor bring(const Tensor& tensor) const { return tensor.to(place).contiguous(); }

  c10::DeviceGuard guard;
  at::Device place;
  cuda::Device device;
};

// Seed and step, copied into kernel arguments or left on the device.
struct RandomState {
  RandomState(const Tensor& rng, const Run& run) {
    check_rng(rng);
    if (is_on_device(rng)) kept = run.bring(rng);
    source = kept.defined() ? cuda::RngSource{kept.const_data_ptr<int64_t>(), {}}
                            : cuda::RngSource{nullptr, rng_of(rng)};
  }

  Tensor kept;
  cuda::RngSource source;
};

// Standard deviations of the noise: in the table, or left on the device.
struct Scale {
  Scale(const Tensor& scale, const Run& run, std::vector<cuda::Tensor>* tensors) {
    if (is_on_device(scale)) {
      kept = run.bring(scale);
      device = kept.const_data_ptr<double>();
      return;
    }
    const Tensor values = scale.contiguous();
    for (size_t i = 0; i < tensors->size(); ++i) {
      (*tensors)[i].scale = values.const_data_ptr<double>()[i];
    }
  }

  Tensor kept;
  const double* device = nullptr;
};

// As in the kernels, which say it in another way; the reference waits for the device anyway.
void refuse_infinite(const char* op, const Tensor& scale) {
  if (!is_on_device(scale)) return;
  const Tensor values = scale.cpu().contiguous();
  for (int64_t i = 0; i < values.numel(); ++i) {
    const double value = values.const_data_ptr<double>()[i];
    TORCH_CHECK_VALUE(std::isfinite(value), op, ": scale on a device must be finite, got ", value);
  }
}

cuda::Change change_of(Name noise, Name update, bool allow_overflow) {
  const auto [mode, rounding] = lookup("update", update, kUpdates);
  return {lookup("noise", noise, kNoises), mode, rounding, allow_overflow};
}

void set_counts(std::vector<cuda::Tensor>* tensors, at::IntArrayRef k, bool per_tensor) {
  if (!per_tensor) return;
  for (size_t i = 0; i < tensors->size(); ++i) (*tensors)[i].k = k[i];
}

cuda::TopK topk_of(std::vector<cuda::Tensor>* tensors, at::IntArrayRef k, bool per_tensor,
                   ScoreKind score, Name nan) {
  set_counts(tensors, k, per_tensor);
  return {tensors->data(), static_cast<int>(tensors->size()), per_tensor ? 0 : k[0], per_tensor,
          score,           lookup("nan", nan, kNanRules)};
}

cuda::RandomK randomk_of(std::vector<cuda::Tensor>* tensors, at::IntArrayRef k, bool per_tensor,
                         int64_t total) {
  set_counts(tensors, k, per_tensor);
  return {tensors->data(), static_cast<int>(tensors->size()), per_tensor ? 0 : k[0], per_tensor,
          total};
}

constexpr int64_t kTileBytes = cuda::kTileWords * static_cast<int64_t>(sizeof(uint32_t));

// One bit for each element of each tile.
Tensor empty_bits(std::vector<cuda::Tensor>* tensors, const Run& run) {
  const int64_t tiles = cuda::number_tiles(tensors->data(), static_cast<int>(tensors->size()));
  return at::empty({tiles * kTileBytes}, at::TensorOptions(run.place).dtype(at::kByte));
}

// The bits of each tensor, on its device: views of `bits` where that is the one of the call.
std::vector<Tensor> unpack(const Tensor& bits, const std::vector<cuda::Tensor>& tensors,
                           TensorList weights) {
  std::vector<Tensor> packed;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int64_t bytes = (weights[i].numel() + 7) / 8;
    const Tensor part = bits.narrow(0, tensors[i].first_tile * kTileBytes, bytes);
    packed.push_back(part.to(weights[i].device(), /*non_blocking=*/true));
  }
  return packed;
}

Tensor run_topk_perturb_(TensorList weights, TensorList scores, const Tensor& scale,
                         const Tensor& rng, at::IntArrayRef k, bool per_tensor, Name score,
                         Name nan, Name noise, Name update, bool allow_overflow,
                         at::IntArrayRef layout) {
  const Ranking ranking = lookup("score", score, kScores);
  const TensorList read = ranking.by_weight ? weights : scores;
  check_topk("topk_perturb_", weights, read, k, per_tensor, layout);
  check_scale("topk_perturb_", weights, scale);
  std::vector<cuda::Tensor> tensors = describe(weights, read, layout, true);
  if (!served(weights, read, tensors, false)) {
    refuse_infinite("topk_perturb_", scale);
    const Tensor stats = call_reference("fastunlearn::topk_perturb_", &run_topk_perturb_, weights,
                                        weights, scores, scale, rng, k, per_tensor, score, nan,
                                        noise, update, allow_overflow, layout);
    return bring_home(stats, weights);
  }
  const Run run(weights[0].device());
  Peers peers(weights, read, run.place);
  const Scale scales(scale, run, &tensors);
  const RandomState state(rng, run);
  const cuda::TopK topk = topk_of(&tensors, k, per_tensor, ranking.kind, nan);
  const cuda::Change change = change_of(noise, update, allow_overflow);
  const Tensor stats = empty_stats(weights, run.place);
  bump_versions(weights);
  run([&](void* workspace, size_t* bytes) {
    return cuda::topk_perturb(topk, change, scales.device, state.source, workspace, bytes,
                              stats.mutable_data_ptr<int64_t>(), run.device);
  });
  peers.finish();
  return stats;
}

std::tuple<std::vector<Tensor>, Tensor> run_topk_select(TensorList weights, TensorList scores,
                                                        at::IntArrayRef k, bool per_tensor,
                                                        Name score, Name nan,
                                                        at::IntArrayRef layout) {
  const Ranking ranking = lookup("score", score, kScores);
  const TensorList read = ranking.by_weight ? weights : scores;
  check_topk("topk_select", weights, read, k, per_tensor, layout);
  std::vector<cuda::Tensor> tensors = describe(weights, read, layout, false);
  if (!served(weights, read, tensors, false)) {
    auto [packed, counts] = call_reference("fastunlearn::topk_select", &run_topk_select, weights,
                                           weights, scores, k, per_tensor, score, nan, layout);
    return {std::move(packed), bring_home(counts, weights)};
  }
  const Run run(weights[0].device());
  Peers peers(weights, read, run.place);
  const cuda::TopK topk = topk_of(&tensors, k, per_tensor, ranking.kind, nan);
  const Tensor bits = empty_bits(&tensors, run);
  const Tensor stats = empty_stats(weights, run.place);
  run([&](void* workspace, size_t* bytes) {
    return cuda::topk_select(topk, workspace, bytes,
                             static_cast<uint32_t*>(bits.mutable_data_ptr()),
                             stats.mutable_data_ptr<int64_t>(), run.device);
  });
  peers.finish();
  return {unpack(bits, tensors, weights), stats};
}

Tensor run_randomk_perturb_(TensorList weights, const Tensor& scale, const Tensor& rng,
                            at::IntArrayRef k, bool per_tensor, Name noise, Name update,
                            bool allow_overflow, at::IntArrayRef layout, int64_t total) {
  check_randomk("randomk_perturb_", weights, k, per_tensor, layout, total);
  check_scale("randomk_perturb_", weights, scale);
  std::vector<cuda::Tensor> tensors = describe(weights, {}, layout, true);
  if (!served(weights, {}, tensors, per_tensor)) {
    refuse_infinite("randomk_perturb_", scale);
    const Tensor stats =
        call_reference("fastunlearn::randomk_perturb_", &run_randomk_perturb_, weights, weights,
                       scale, rng, k, per_tensor, noise, update, allow_overflow, layout, total);
    return bring_home(stats, weights);
  }
  const Run run(weights[0].device());
  Peers peers(weights, {}, run.place);
  const Scale scales(scale, run, &tensors);
  const RandomState state(rng, run);
  const cuda::RandomK randomk = randomk_of(&tensors, k, per_tensor, total);
  const cuda::Change change = change_of(noise, update, allow_overflow);
  const Tensor stats = empty_stats(weights, run.place);
  bump_versions(weights);
  run([&](void* workspace, size_t* bytes) {
    return cuda::randomk_perturb(randomk, change, scales.device, state.source, workspace, bytes,
                                 stats.mutable_data_ptr<int64_t>(), run.device);
  });
  peers.finish();
  return stats;
}

std::tuple<std::vector<Tensor>, Tensor> run_randomk_select(TensorList weights, const Tensor& rng,
                                                           at::IntArrayRef k, bool per_tensor,
                                                           at::IntArrayRef layout, int64_t total) {
  check_randomk("randomk_select", weights, k, per_tensor, layout, total);
  std::vector<cuda::Tensor> tensors = describe(weights, {}, layout, false);
  if (!served(weights, {}, tensors, per_tensor)) {
    auto [packed, counts] = call_reference("fastunlearn::randomk_select", &run_randomk_select,
                                           weights, weights, rng, k, per_tensor, layout, total);
    return {std::move(packed), bring_home(counts, weights)};
  }
  const Run run(weights[0].device());
  const RandomState state(rng, run);
  const cuda::RandomK randomk = randomk_of(&tensors, k, per_tensor, total);
  const Tensor bits = empty_bits(&tensors, run);
  const Tensor stats = empty_stats(weights, run.place);
  run([&](void* workspace, size_t* bytes) {
    return cuda::randomk_select(randomk, state.source, workspace, bytes,
                                static_cast<uint32_t*>(bits.mutable_data_ptr()),
                                stats.mutable_data_ptr<int64_t>(), run.device);
  });
  return {unpack(bits, tensors, weights), stats};
}

Tensor run_noise(const Tensor& index, const Tensor& rng, Name kind) {
  if (!is_on_device_type(index)) {
    return call_reference("fastunlearn::noise", &run_noise, index, index, rng, kind);
  }
  const Run run(index.device());
  const RandomState state(rng, run);
  const Tensor flat = index.contiguous();
  const Tensor out = at::empty(index.sizes(), at::TensorOptions(run.place).dtype(at::kFloat));
  refuse_earlier_error();
  check(cuda::noise_at(flat.const_data_ptr<int64_t>(), flat.numel(), lookup("noise", kind, kNoises),
                       state.source, out.mutable_data_ptr<float>(), run.device));
  return out;
}

Tensor run_rms(TensorList tensors) {
  std::vector<int64_t> layout;
  int64_t base = 0;
  for (const Tensor& tensor : tensors) {
    layout.insert(layout.end(), {base, tensor.numel(), tensor.numel()});
    base += tensor.numel();
  }
  std::vector<cuda::Tensor> described = describe(tensors, {}, layout, false);
  if (!served(tensors, {}, described, true)) {
    return bring_home(call_reference("fastunlearn::rms", &run_rms, tensors, tensors), tensors);
  }
  const Run run(tensors[0].device());
  Peers peers(tensors, {}, run.place);
  const Tensor out = at::empty({static_cast<int64_t>(tensors.size())},
                               at::TensorOptions(run.place).dtype(at::kDouble));
  run([&](void* workspace, size_t* bytes) {
    return cuda::rms(described.data(), static_cast<int>(described.size()), workspace, bytes,
                     out.mutable_data_ptr<double>(), run.device);
  });
  peers.finish();
  return out;
}

torch::Library make_library() {
  torch::Library library(torch::Library::IMPL, "fastunlearn", kDispatchKey, __FILE__, __LINE__);
  library.impl("topk_perturb_", &run_topk_perturb_);
  library.impl("topk_select", &run_topk_select);
  library.impl("randomk_perturb_", &run_randomk_perturb_);
  library.impl("randomk_select", &run_randomk_select);
  library.impl("noise", &run_noise);
  library.impl("rms", &run_rms);
  return library;
}

}  // namespace

void register_device_ops() { static const torch::Library library = make_library(); }

}  // namespace fastunlearn
