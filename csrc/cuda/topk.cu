#include <initializer_list>

#include "cuda/sample.h"
#include "cuda/selection.h"
#include "cuda/topk.h"

namespace fastunlearn::cuda {
namespace {

// What the host knows of a call.
struct Size {
  int64_t elements = 0, selected = 0, samples = 0, candidates = 0;

  void add_problem(int64_t numel, int64_t k, bool coarse) {
    const int64_t drawn = sample_size(numel, k);
    selected += k;
    samples += drawn;
    candidates += candidate_room(numel, k, drawn, coarse);
  }
};

Size size_of(const TopK& topk) {
  Size size;
  bool coarse = false;
  for (int i = 0; i < topk.count; ++i) {
    Tensor* const tensor = topk.tensors + i;
    const bool half = item_bytes(tensor->score.dtype) == 2;
    tensor->first_sample = size.samples;
    if (topk.per_tensor) size.add_problem(tensor->segment.numel, tensor->k, half);
    coarse = coarse || half;
    size.elements += tensor->segment.numel;
  }
  if (!topk.per_tensor) size.add_problem(size.elements, topk.k, coarse);
  return size;
}

// Takes room for everything but the bits and the statistics.
Selection plan(const TopK& topk, const Size& size, Workspace* workspace) {
  Selection selection{};
  Table& table = selection.table;
  table.count = topk.count;
  table.tiles = number_tiles(topk.tensors, topk.count);
  table.header = workspace->take<Header>(1);
  table.tensors = workspace->take<Tensor>(topk.count);
  selection.num_problems = topk.per_tensor ? topk.count : 1;
  selection.per_tensor = topk.per_tensor;
  selection.k = topk.k;
  selection.elements = size.elements;
  selection.score = topk.score;
  selection.nan = topk.nan;
  selection.problems = workspace->take<Problem>(selection.num_problems);
  selection.num_samples = size.samples;
  selection.sample = workspace->take<uint32_t>(size.samples);
  selection.runs = workspace->take<Run>(table.tiles);
  selection.tile_ties = workspace->take<uint32_t>(table.tiles);
  selection.capacity = size.candidates;
  selection.candidate_key = workspace->take<uint32_t>(size.candidates);
  selection.candidate_place = workspace->take<uint16_t>(size.candidates);
  selection.bin_bits = topk.per_tensor ? kTensorBinBits : kBinBits;
  selection.histogram =
      workspace->take<unsigned long long>(selection.num_problems * selection.bins());
  return selection;
}

// From the host's table to the bitmap on the device.
cudaError_t select(const TopK& topk, const Selection& selection, const double* scale,
                   const RngSource& rng, const Device& device) {
  const Table& table = selection.table;
  const auto clear = [&](void* memory, int64_t bytes) {
    return cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), device.stream);
  };
  const int64_t bins = selection.num_problems * selection.bins();
  cudaError_t status = clear(table.header, sizeof(Header));
  if (status != cudaSuccess) return status;
  status = clear(selection.stats, int64_t{topk.count} * kStatColumns * sizeof(int64_t));
  if (status != cudaSuccess) return status;
  status = clear(selection.histogram, bins * sizeof(*selection.histogram));
  if (status != cudaSuccess) return status;
  status = load_table(topk.tensors, scale, rng, table, device);
  if (status != cudaSuccess) return status;
  for (const auto stage : {find_brackets, stream, find_cuts, settle}) {
    status = stage(selection, device);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t topk_perturb(const TopK& topk, const Change& change, const double* scale,
                         const RngSource& rng, void* workspace, size_t* workspace_bytes,
                         int64_t* stats, const Device& device) {
  const Size size = size_of(topk);
  const int64_t item_bytes = most_item_bytes(topk.tensors, topk.count);
  Workspace dealt(workspace);
  Selection selection = plan(topk, size, &dealt);
  const int64_t tiles = selection.table.tiles;
  selection.bits = dealt.take<uint32_t>(tiles * kTileWords);
  const WriteRoom room =
      take_write_room(&dealt, tiles, size.elements, size.selected, item_bytes, change);
  *workspace_bytes = dealt.bytes();
  if (workspace == nullptr) return cudaSuccess;
  selection.stats = stats;
  const cudaError_t status = select(topk, selection, scale, rng, device);
  if (status != cudaSuccess) return status;
  return write(selection.table, selection.bits, change, room, stats, device);
}

cudaError_t topk_select(const TopK& topk, void* workspace, size_t* workspace_bytes, uint32_t* bits,
                        int64_t* stats, const Device& device) {
  Workspace dealt(workspace);
  Selection selection = plan(topk, size_of(topk), &dealt);
  *workspace_bytes = dealt.bytes();
  if (workspace == nullptr) return cudaSuccess;
  selection.bits = bits;
  selection.stats = stats;
  const cudaError_t status = select(topk, selection, nullptr, RngSource{}, device);
  if (status != cudaSuccess) return status;
  return count_selected(selection.table, bits, stats, device);
}

}  // namespace fastunlearn::cuda
