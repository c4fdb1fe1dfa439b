#include <algorithm>
#include <type_traits>

#include "core/element.h"
#include "cuda/screen.h"
#include "cuda/tally.cuh"
#include "cuda/tile_list.cuh"
#include "cuda/write.h"

namespace fastunlearn::cuda {
namespace {

// Blocks that a multiprocessor is to hold: at most 64 registers for each thread.
constexpr int kWriteBlocks = 4;

enum class Pass {
  kWrite,    // writes, unless a rehearsal has met overflow
  kKeep,     // writes, and keeps the old values in the journal
  kRehearse  // writes nothing; does nothing where the screen has passed
};

struct Job {
  Table table;
  const uint32_t* bits;  // shape (tiles, kTileWords)
  Change change;
  WriteRoom room;
  int64_t* stats;  // shape (count, kStatColumns)
};

// Where the old value of the tile's selected element i is kept.
template <class T>
__device__ T* kept(const WriteRoom& room, int64_t begin, int i) {
  return reinterpret_cast<T*>(static_cast<char*>(room.journal) + (begin + i) * room.item_bytes);
}

// How one tile is written.
struct TileWrite {
  int selected;
  bool dense;  // the words are in the list
  bool commit;
  int64_t begin;  // number of its first old value
  Rng rng;
};

template <Pass pass, class T>
__device__ void write_listed(const Job& job, const Tile& tile, const TileWrite& write,
                             const TileList& list, Tally* tally) {
  const Tensor& tensor = job.table.tensors[tile.tensor];
  const Elements<T> weights(tensor.weight);
  const Segment segment = tensor.segment;
  const RowChange change{tensor.scale, job.change.mode};
  for (int i = threadIdx.x; i < write.selected; i += kThreads) {
    const int64_t local = tile.start + list.place[i];
    T* const at = &weights[local];
    const T old = *at;
    float z = 0;
    if (change.mode != UpdateMode::kZero) {
      const auto index = static_cast<uint64_t>(segment.to_global(local));
      z = noise_of(job.change.noise, write.dense ? list.word[i] : noise_word(index, write.rng));
    }
    const T value = update_element(old, z, change, tally);
    if (pass == Pass::kKeep) *kept<T>(job.room, write.begin, i) = old;
    if (write.commit) *at = value;
  }
}

// Lists the selected elements of a tile; returns whether with their words.
__device__ bool list_tile(const Job& job, const Tile& tile, int selected, const Rng& rng,
                          TileList* list) {
  const Segment& segment = job.table.tensors[tile.tensor].segment;
  const bool dense = job.change.mode != UpdateMode::kZero && segment.one_row() &&
                     selected * kDenseShare >= tile.count;
  if (dense) {
    list->list_words(static_cast<uint64_t>(segment.to_global(tile.start)), tile.count, rng);
  } else {
    list->list_places();
  }
  return dense;
}

template <Pass pass>
__global__ void __launch_bounds__(kThreads, kWriteBlocks) write_tiles(Job job) {
  __shared__ TileList list;
  __shared__ int64_t begin;
  Header* const header = job.table.header;
  if (header->refused != 0 || (pass == Pass::kRehearse && header->suspicious == 0)) return;
  TileWrite write = {};
  write.commit = pass == Pass::kKeep || (pass == Pass::kWrite && header->overflow == 0);
  write.rng = header->rng;
  WarpTally tally(pass == Pass::kRehearse ? nullptr : job.stats,
                  pass == Pass::kWrite ? nullptr : &header->overflow);
  for_each_tile(job.table, blockIdx.x, gridDim.x, [&](int64_t number, const Tile& tile) {
    tally.move_to(tile.tensor);
    write.selected = list.load(job.bits + number * kTileWords);
    if (write.selected == 0) return;
    if (threadIdx.x == 0) {
      tally.selected += write.selected;
      if (pass == Pass::kKeep) {
        begin = atomicAdd(&header->journaled, static_cast<unsigned long long>(write.selected));
        job.room.journal_begin[number] = begin;
      }
    }
    write.dense = list_tile(job, tile, write.selected, write.rng, &list);
    __syncthreads();
    if (pass == Pass::kKeep) write.begin = begin;
    dispatch(job.table.tensors[tile.tensor].weight.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      write_listed<pass, T>(job, tile, write, list, &tally.tally);
    });
  });
  tally.flush();
}

// Gives the old values back where a weight has overflowed.
__global__ void __launch_bounds__(kThreads) undo(Job job) {
  __shared__ TileList list;
  if (job.table.header->overflow == 0) return;
  for_each_tile(job.table, blockIdx.x, gridDim.x, [&](int64_t number, const Tile& tile) {
    const int selected = list.load(job.bits + number * kTileWords);
    if (selected == 0) return;
    list.list_places();
    __syncthreads();
    const int64_t begin = job.room.journal_begin[number];
    const Memory& weight = job.table.tensors[tile.tensor].weight;
    dispatch(weight.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      const Elements<T> weights(weight);
      for (int i = threadIdx.x; i < selected; i += kThreads) {
        weights[tile.start + list.place[i]] = *kept<T>(job.room, begin, i);
      }
    });
  });
}

// One warp for each tile.
__global__ void __launch_bounds__(kThreads)
    count_tiles(Table table, const uint32_t* bits, int64_t* stats) {
  if (table.header->refused != 0) return;
  WarpTally tally(stats, nullptr);
  const int64_t warp = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kWarp;
  for_each_tile(table, warp, int64_t{gridDim.x} * kWarps, [&](int64_t number, const Tile& tile) {
    tally.move_to(tile.tensor);
    for (int i = threadIdx.x % kWarp; i < kTileWords; i += kWarp) {
      tally.selected += __popc(bits[number * kTileWords + i]);
    }
  });
  tally.flush();
}

}  // namespace

WriteRoom take_write_room(Workspace* workspace, int64_t tiles, int64_t numel, int64_t selected,
                          int64_t item_bytes, const Change& change) {
  WriteRoom room = {nullptr, nullptr, item_bytes};
  const int64_t most = std::max(kJournalLeast, numel / kJournalShare);
  if (!may_refuse(change) || selected * item_bytes > most) return room;
  room.journal = workspace->take<char>(selected * item_bytes);
  room.journal_begin = workspace->take<int64_t>(tiles);
  return room;
}

cudaError_t write(const Table& table, const uint32_t* bits, const Change& change,
                  const WriteRoom& room, int64_t* stats, const Device& device) {
  const Job job{table, bits, change, room, stats};
  const int blocks = grid_for(device, table.tiles, 1);
  const auto run = [&](void (*kernel)(Job)) {
    return launch(kernel, blocks, kThreads, device.stream, job);
  };
  if (!may_refuse(change)) return run(write_tiles<Pass::kWrite>);
  cudaError_t status = cudaSuccess;
  if (room.journal != nullptr) {
    status = run(write_tiles<Pass::kKeep>);
    return status == cudaSuccess ? run(undo) : status;
  }
  status = screen(table, bits, device);
  if (status == cudaSuccess) status = run(write_tiles<Pass::kRehearse>);
  if (status == cudaSuccess) status = run(write_tiles<Pass::kWrite>);
  return status;
}

cudaError_t count_selected(const Table& table, const uint32_t* bits, int64_t* stats,
                           const Device& device) {
  return launch(count_tiles, grid_for(device, table.tiles, kWarps), kThreads, device.stream, table,
                bits, stats);
}

}  // namespace fastunlearn::cuda
