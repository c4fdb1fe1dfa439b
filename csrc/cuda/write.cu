#include <algorithm>
#include <type_traits>

#include "core/element.h"
#include "cuda/screen.h"
#include "cuda/tally.cuh"
#include "cuda/warp_list.cuh"
#include "cuda/write.h"

namespace fastunlearn::cuda {
namespace {

// Blocks that a multiprocessor is to hold: at most 85 registers for each thread, and more where a
// second Philox has to find room.
constexpr int kWriteBlocks = 3, kStochasticBlocks = 2;
constexpr int write_blocks(Rounding rounding) {
  return rounding == Rounding::kStochastic ? kStochasticBlocks : kWriteBlocks;
}

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

// How a warp writes a list.
struct ListWrite {
  int count;       // elements of the list
  bool has_words;  // the words are in the list
  bool commit;
  int64_t begin;  // number of the old value of its first element
  Rng rng;
};

template <Pass pass, Rounding rounding, class T>
__device__ void write_list(const Job& job, const Tile& tile, const ListWrite& write,
                           const WarpList& list, Tally* tally) {
  const Tensor& tensor = job.table.tensors[tile.tensor];
  const Elements<T> weights(tensor.weight);
  const Segment segment = tensor.segment;
  const RowChange change{tensor.scale, job.change.mode, rounding};
  for (int i = lane_id(); i < write.count; i += kWarp) {
    const int64_t local = tile.start + list.place[i];
    T* const at = &weights[local];
    const T old = *at;
    float z = 0;
    uint32_t word = 0;
    if (change.mode != UpdateMode::kZero) {
      const auto index = static_cast<uint64_t>(segment.to_global(local));
      z = noise_of(job.change.noise,
                   write.has_words ? list.word[i] : word_of(index, kStreamNoise, write.rng));
      if (rounds_by_words<T>(change.mode, rounding)) {
        word = word_of(index, kStreamRounding, write.rng);
      }
    }
    const T value = update_element(old, z, word, change, tally);
    if (pass == Pass::kKeep) *kept<T>(job.room, write.begin, i) = old;
    if (write.commit) *at = value;
  }
}

// Lists a group, with the words where that is cheaper; returns how many it selects.
__device__ int list_group(const Job& job, const Tile& tile, const TileBits& bits, int group,
                          ListWrite* write, WarpList* list) {
  const int count = bits.before_group(group + 1) - bits.before_group(group);
  if (count == 0) return 0;
  const Segment& segment = job.table.tensors[tile.tensor].segment;
  const int left = tile.count - group * kGroup, elements = left < kGroup ? left : kGroup;
  write->has_words =
      job.change.mode != UpdateMode::kZero && segment.one_row() && count * kDenseShare >= elements;
  if (write->has_words) {
    const int64_t index = segment.to_global(tile.start + group * kGroup);
    list->list_words(bits, group, static_cast<uint64_t>(index), elements, write->rng);
  } else {
    list->list_group(bits, group);
  }
  return count;
}

// Calls body() with write->count and write->begin set for each list of the groups first .. last of
// a tile: one of all groups where that is enough.
template <class Body>
__device__ void for_each_list(const Job& job, const Tile& tile, const TileBits& bits, int first,
                              int last, ListWrite* write, WarpList* list, const Body& body) {
  const bool whole = last - first == kGroups && bits.total <= kGroup;
  write->has_words = false;
#pragma unroll 1
  for (int group = first; group < last; group += whole ? kGroups : 1) {
    if (whole) {
      list->list_tile(bits);
      write->count = bits.total;
    } else {
      write->count = list_group(job, tile, bits, group, write, list);
    }
    body();
    write->begin += write->count;
  }
}

// Where few elements are selected, each warp has tiles of its own; where many are, the warps of a
// block share its tiles, a group of each.
template <Pass pass, Rounding rounding, bool kShared>
__global__ void __launch_bounds__(kThreads, write_blocks(rounding)) write_tiles(Job job) {
  __shared__ WarpList lists[kWarps];
  Header* const header = job.table.header;
  if (header->refused != 0 || (pass == Pass::kRehearse && header->suspicious == 0)) return;
  ListWrite write = {};
  write.commit = pass == Pass::kKeep || (pass == Pass::kWrite && header->overflow == 0);
  write.rng = header->rng;
  WarpTally tally(pass == Pass::kRehearse ? nullptr : job.stats,
                  pass == Pass::kWrite ? nullptr : &header->overflow);
  const int64_t worker = kShared ? blockIdx.x : warp_of_grid();
  const int64_t workers = int64_t{gridDim.x} * (kShared ? 1 : kWarps);
  const int first = kShared ? warp_id() : 0, last = kShared ? first + 1 : kGroups;
  for_each_tile(job.table, worker, workers, [&](int64_t number, const Tile& tile) {
    tally.move_to(tile.tensor);
    const TileBits bits = TileBits::load(job.bits + number * kTileWords);
    if (bits.total == 0) return;
    if (first == 0 && lane_id() == 0) tally.selected += bits.total;
    if (pass == Pass::kKeep) {
      if (lane_id() == 0) {
        write.begin = atomicAdd(&header->journaled, static_cast<unsigned long long>(bits.total));
        job.room.journal_begin[number] = write.begin;
      }
      write.begin = __shfl_sync(kAllLanes, write.begin, 0);
    }
    WarpList* const list = lists + warp_id();
    for_each_list(job, tile, bits, first, last, &write, list, [&] {
      dispatch(job.table.tensors[tile.tensor].weight.dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        write_list<pass, rounding, T>(job, tile, write, *list, &tally.tally);
      });
    });
  });
  tally.flush();
}

// Gives the old values back where a weight has overflowed.
__global__ void __launch_bounds__(kThreads, kWriteBlocks) undo(Job job) {
  __shared__ WarpList lists[kWarps];
  if (job.table.header->overflow == 0) return;
  const int64_t workers = int64_t{gridDim.x} * kWarps;
  for_each_tile(job.table, warp_of_grid(), workers, [&](int64_t number, const Tile& tile) {
    const TileBits bits = TileBits::load(job.bits + number * kTileWords);
    if (bits.total == 0) return;
    const Memory& weight = job.table.tensors[tile.tensor].weight;
    ListWrite back = {};
    back.begin = job.room.journal_begin[number];
    WarpList* const list = lists + warp_id();
    for_each_list(job, tile, bits, 0, kGroups, &back, list, [&] {
      dispatch(weight.dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        const Elements<T> weights(weight);
        for (int i = lane_id(); i < back.count; i += kWarp) {
          weights[tile.start + list->place[i]] = *kept<T>(job.room, back.begin, i);
        }
      });
    });
  });
}

// One warp for each tile.
__global__ void __launch_bounds__(kThreads)
    count_tiles(Table table, const uint32_t* bits, int64_t* stats) {
  if (table.header->refused != 0) return;
  WarpTally tally(stats, nullptr);
  for_each_tile(table, warp_of_grid(), int64_t{gridDim.x} * kWarps,
                [&](int64_t number, const Tile& tile) {
                  tally.move_to(tile.tensor);
                  for (int i = threadIdx.x % kWarp; i < kTileWords; i += kWarp) {
                    tally.selected += __popc(bits[number * kTileWords + i]);
                  }
                });
  tally.flush();
}

template <Rounding rounding>
cudaError_t write_rounded(const Job& job, const Device& device) {
  const auto run = [&](void (*kernel)(Job), int tiles_of_block) {
    const int blocks = grid_for(device, job.table.tiles, tiles_of_block);
    return launch(kernel, blocks, kThreads, device.stream, job);
  };
  const auto run_pass = [&](void (*by_warps)(Job), void (*by_blocks)(Job)) {
    return job.room.many ? run(by_blocks, 1) : run(by_warps, kWarps);
  };
  cudaError_t status = cudaSuccess;
  if (job.room.journal != nullptr) {
    status = run(write_tiles<Pass::kKeep, rounding, false>, kWarps);
    return status == cudaSuccess ? run(undo, kWarps) : status;
  }
  if (may_refuse(job.change)) {
    status = screen(job.table, job.bits, device);
    if (status != cudaSuccess) return status;
    status = run_pass(write_tiles<Pass::kRehearse, rounding, false>,
                      write_tiles<Pass::kRehearse, rounding, true>);
    if (status != cudaSuccess) return status;
  }
  return run_pass(write_tiles<Pass::kWrite, rounding, false>,
                  write_tiles<Pass::kWrite, rounding, true>);
}

}  // namespace

WriteRoom take_write_room(Workspace* workspace, int64_t tiles, int64_t numel, int64_t selected,
                          int64_t item_bytes, const Change& change) {
  WriteRoom room = {nullptr, nullptr, item_bytes, selected > numel / kManyShare};
  const int64_t most = std::max(kJournalLeast, numel / kJournalShare);
  if (!may_refuse(change) || selected * item_bytes > most) return room;
  room.journal = workspace->take<char>(selected * item_bytes);
  room.journal_begin = workspace->take<int64_t>(tiles);
  return room;
}

cudaError_t write(const Table& table, const uint32_t* bits, const Change& change,
                  const WriteRoom& room, int64_t* stats, const Device& device) {
  const Job job{table, bits, change, room, stats};
  return change.rounding == Rounding::kStochastic
             ? write_rounded<Rounding::kStochastic>(job, device)
             : write_rounded<Rounding::kNearest>(job, device);
}

cudaError_t count_selected(const Table& table, const uint32_t* bits, int64_t* stats,
                           const Device& device) {
  return launch(count_tiles, grid_for(device, table.tiles, kWarps), kThreads, device.stream, table,
                bits, stats);
}

}  // namespace fastunlearn::cuda
