#include <algorithm>
#include <type_traits>

#include "core/element.h"
#include "core/permutation.h"
#include "cuda/element.cuh"
#include "cuda/randomk.h"

namespace fastunlearn::cuda {
namespace {

// Tensors whose counts a block gathers in shared memory; those of others go to memory one by one.
constexpr int kCounted = 1024;

// One problem: some of the flat indices base .. base + permutation.n are selected.
struct Domain {
  int64_t base;
  int64_t first;  // images of the domains before it
  int64_t from;   // its images are those of from, from + 1, ...
  bool inverted;  // its images are not selected, but all others
  Permutation permutation;
};

// A call in its workspace.
struct Job {
  Table table;
  Domain* domains;  // shape (count,) where per_tensor, else (1,)
  int64_t k;
  int64_t total;
  int64_t images;  // of all domains
  bool per_tensor;
  bool streaming;  // goes through a bitmap

  int num_domains() const { return per_tensor ? table.count : 1; }
};

// Whether a bitmap begins full and loses the others, who are fewer. The domain of a shard is not
// what it holds.
FASTUNLEARN_HD bool inverts(const Job& job, const Tensor& tensor) {
  if (!job.streaming) return false;
  if (!job.per_tensor) return job.k > job.total / 2;
  return tensor.segment.one_row() && tensor.k > tensor.segment.numel / 2;
}

__device__ void make_domain(const Job& job, int i) {
  const Tensor& tensor = job.table.tensors[i];  // not read where the domain is everything
  const int64_t base = job.per_tensor ? tensor.segment.base : 0;
  const int64_t size = job.per_tensor ? tensor.segment.numel : job.total;
  const int64_t k = job.per_tensor ? tensor.k : job.k;
  const bool inverted = inverts(job, tensor);
  Domain* const domain = &job.domains[i];
  domain->base = base;
  domain->first = job.per_tensor ? tensor.first_sample : 0;
  domain->from = inverted ? k : 0;
  domain->inverted = inverted;
  if (size == 0) return;
  const Rng rng = job.table.header->rng;
  domain->permutation =
      Permutation::make(static_cast<uint64_t>(size), rng, static_cast<uint64_t>(base));
}

// Makes the domains, and the statistics of a call that has no threshold and selected nothing yet.
__global__ void __launch_bounds__(kThreads) begin(Job job, int num_domains, int64_t* stats) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i < job.table.count) {
    int64_t* const row = stats + int64_t{i} * kStatColumns;
    for (int column = 0; column < kStatColumns; ++column) row[column] = 0;
    row[kStatThreshold] = -1;
  }
  if (i < num_domains) make_domain(job, i);
}

// Calls body(number, tensor, local) for a thread's share of the images that are elements of the
// call's tensors.
template <class Body>
__device__ void for_each_image(const Job& job, const Body& body) {
  const Tensor* const tensors = job.table.tensors;
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < job.images; i += step) {
    const int own =
        job.per_tensor ? last_begun(job.table.count, i, [&](int d) { return job.domains[d].first; })
                       : 0;
    const Domain& domain = job.domains[own];
    const auto number = static_cast<uint64_t>(domain.from + i - domain.first);
    const int64_t index = domain.base + static_cast<int64_t>(domain.permutation(number));
    const int tensor =
        last_begun(job.table.count, index, [&](int t) { return tensors[t].segment.base; });
    if (tensor < 0) continue;
    const int64_t local = tensors[tensor].segment.to_local(index);
    if (local >= 0) body(i, tensor, local);
  }
}

// Counts of a block for each tensor.
struct Counts {
  int selected[kCounted], overflow[kCounted], unchanged[kCounted];

  __device__ void clear() {
    for (int i = threadIdx.x; i < kCounted; i += kThreads) {
      selected[i] = overflow[i] = unchanged[i] = 0;
    }
  }

  __device__ void add(int tensor, const Tally& tally, int64_t* stats) {
    if (tensor >= kCounted) {
      add_to_stats(tensor, 1, tally.overflow, tally.unchanged, stats);
      return;
    }
    atomicAdd(&selected[tensor], 1);
    if (tally.overflow != 0) atomicAdd(&overflow[tensor], 1);
    if (tally.unchanged != 0) atomicAdd(&unchanged[tensor], 1);
  }

  __device__ void flush(int count, int64_t* stats) const {
    for (int i = threadIdx.x; i < count && i < kCounted; i += kThreads) {
      add_to_stats(i, selected[i], overflow[i], unchanged[i], stats);
    }
  }

 private:
  static __device__ void add_to_stats(int tensor, int64_t selected, int64_t overflow,
                                      int64_t unchanged, int64_t* stats) {
    auto* const row = reinterpret_cast<unsigned long long*>(stats) + int64_t{tensor} * kStatColumns;
    if (selected != 0) atomicAdd(&row[kStatSelected], selected);
    if (overflow != 0) atomicAdd(&row[kStatOverflow], overflow);
    if (unchanged != 0) atomicAdd(&row[kStatUnchanged], unchanged);
  }
};

// Where the old values of the images' elements are kept, by the images' numbers.
struct OldValues {
  char* data;  // null where nothing can be refused
  int64_t item_bytes;

  template <class T>
  __device__ T* at(int64_t image) const {
    return reinterpret_cast<T*>(data + image * item_bytes);
  }
};

__global__ void __launch_bounds__(kThreads)
    scatter(Job job, Change change, OldValues old_values, int64_t* stats) {
  if (job.table.header->refused != 0) return;
  __shared__ Counts counts;
  counts.clear();
  __syncthreads();
  const Rng rng = job.table.header->rng;
  for_each_image(job, [&](int64_t image, int number, int64_t local) {
    const Tensor& tensor = job.table.tensors[number];
    const auto index = static_cast<uint64_t>(tensor.segment.to_global(local));
    float z = 0;
    if (change.mode != UpdateMode::kZero) {
      z = noise_of(change.noise, word_of(index, kStreamNoise, rng));
    }
    Tally tally;
    dispatch(tensor.weight.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      const Elements<T> weights(tensor.weight);
      T* const at = &weights[local];
      const T old = *at;
      if (old_values.data != nullptr) *old_values.at<T>(image) = old;
      const RowChange row = {tensor.scale, change.mode, change.rounding};
      const bool by_word = rounds_by_words<T>(row.mode, row.rounding);
      const uint32_t word = by_word ? word_of(index, kStreamRounding, rng) : 0;
      *at = update_element(old, z, word, row, &tally);
    });
    counts.add(number, tally, stats);
    if (tally.overflow != 0) atomicAdd(&job.table.header->overflow, 1);
  });
  __syncthreads();
  counts.flush(job.table.count, stats);
}

// Gives the old values back where a weight has overflowed.
__global__ void __launch_bounds__(kThreads) undo(Job job, OldValues old_values) {
  if (job.table.header->overflow == 0) return;
  for_each_image(job, [&](int64_t image, int number, int64_t local) {
    const Memory& weight = job.table.tensors[number].weight;
    dispatch(weight.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      const Elements<T> weights(weight);
      weights[local] = *old_values.at<T>(image);
    });
  });
}

// Sets no bit, or, where the domain is inverted, those of all elements.
__global__ void __launch_bounds__(kThreads) start_bits(Job job, uint32_t* bits) {
  const int word = threadIdx.x;
  if (word >= kTileWords) return;
  for_each_tile(job.table, blockIdx.x, gridDim.x, [&](int64_t number, const Tile& tile) {
    const bool full = job.domains[job.per_tensor ? tile.tensor : 0].inverted;
    const int left = full ? tile.count - 32 * word : 0;
    bits[number * kTileWords + word] = left <= 0 ? 0 : ~uint32_t{0} >> (left < 32 ? 32 - left : 0);
  });
}

__global__ void __launch_bounds__(kThreads) flip_bits(Job job, uint32_t* bits) {
  for_each_image(job, [&](int64_t, int number, int64_t local) {
    uint32_t* const own = bits + job.table.tensors[number].first_tile * kTileWords;
    atomicXor(own + local / 32, uint32_t{1} << local % 32);
  });
}

// How many elements a call selects, out of how many.
struct Size {
  int64_t selected;  // no fewer than there are
  int64_t numel;
};

Size size_of(const RandomK& randomk) {
  Size size = {randomk.per_tensor ? 0 : randomk.k, 0};
  for (int i = 0; i < randomk.count; ++i) {
    size.numel += randomk.tensors[i].segment.numel;
    if (randomk.per_tensor) size.selected += randomk.tensors[i].k;
  }
  return size;
}

Job lay_out(const RandomK& randomk, bool streaming, Workspace* workspace) {
  const int64_t tiles = number_tiles(randomk.tensors, randomk.count);
  const Table table{workspace->take<Tensor>(randomk.count), randomk.count, tiles,
                    workspace->take<Header>(1)};
  Job job{table, nullptr, randomk.k, randomk.total, 0, randomk.per_tensor, streaming};
  job.domains = workspace->take<Domain>(job.num_domains());
  if (!randomk.per_tensor) {
    job.images = inverts(job, {}) ? randomk.total - randomk.k : randomk.k;
    return job;
  }
  for (int i = 0; i < randomk.count; ++i) {
    Tensor* const tensor = &randomk.tensors[i];
    tensor->first_sample = job.images;
    job.images += inverts(job, *tensor) ? tensor->segment.numel - tensor->k : tensor->k;
  }
  return job;
}

cudaError_t start(const RandomK& randomk, const double* scale, const RngSource& rng, const Job& job,
                  int64_t* stats, const Device& device) {
  cudaError_t status = cudaMemsetAsync(job.table.header, 0, sizeof(Header), device.stream);
  if (status == cudaSuccess) status = load_table(randomk.tensors, scale, rng, job.table, device);
  if (status != cudaSuccess) return status;
  const int blocks = std::max(1, (randomk.count + kThreads - 1) / kThreads);
  return launch(begin, blocks, kThreads, device.stream, job, job.num_domains(), stats);
}

// Makes the bitmap of the selected.
cudaError_t make_bits(const Job& job, uint32_t* bits, const Device& device) {
  const cudaError_t status =
      launch(start_bits, grid_for(device, job.table.tiles, 1), kThreads, device.stream, job, bits);
  if (status != cudaSuccess) return status;
  return launch(flip_bits, grid_for(device, job.images, kThreads), kThreads, device.stream, job,
                bits);
}

cudaError_t scatter_all(const Job& job, const Change& change, const OldValues& old_values,
                        int64_t* stats, const Device& device) {
  const int blocks = grid_for(device, job.images, kThreads);
  const cudaError_t status =
      launch(scatter, blocks, kThreads, device.stream, job, change, old_values, stats);
  if (status != cudaSuccess || old_values.data == nullptr) return status;
  return launch(undo, blocks, kThreads, device.stream, job, old_values);
}

}  // namespace

cudaError_t randomk_perturb(const RandomK& randomk, const Change& change, const double* scale,
                            const RngSource& rng, void* workspace, size_t* workspace_bytes,
                            int64_t* stats, const Device& device) {
  const Size size = size_of(randomk);
  const int64_t item_bytes = most_item_bytes(randomk.tensors, randomk.count);
  const bool streaming = size.selected > size.numel / kStreamingShare;
  Workspace room(workspace);
  const Job job = lay_out(randomk, streaming, &room);
  uint32_t* const bits = room.take<uint32_t>(streaming ? job.table.tiles * kTileWords : 0);
  WriteRoom write_room = {};
  OldValues old_values = {nullptr, item_bytes};
  if (streaming) {
    write_room =
        take_write_room(&room, job.table.tiles, size.numel, size.selected, item_bytes, change);
  } else if (may_refuse(change)) {
    old_values.data = room.take<char>(job.images * item_bytes);
  }
  if (workspace == nullptr) {
    *workspace_bytes = room.bytes();
    return cudaSuccess;
  }
  cudaError_t status = start(randomk, scale, rng, job, stats, device);
  if (status != cudaSuccess) return status;
  if (!streaming) return scatter_all(job, change, old_values, stats, device);
  status = make_bits(job, bits, device);
  return status == cudaSuccess ? write(job.table, bits, change, write_room, stats, device) : status;
}

cudaError_t randomk_select(const RandomK& randomk, const RngSource& rng, void* workspace,
                           size_t* workspace_bytes, uint32_t* bits, int64_t* stats,
                           const Device& device) {
  Workspace room(workspace);
  const Job job = lay_out(randomk, true, &room);
  if (workspace == nullptr) {
    *workspace_bytes = room.bytes();
    return cudaSuccess;
  }
  cudaError_t status = start(randomk, nullptr, rng, job, stats, device);
  if (status == cudaSuccess) status = make_bits(job, bits, device);
  if (status == cudaSuccess) status = count_selected(job.table, bits, stats, device);
  return status;
}

}  // namespace fastunlearn::cuda
