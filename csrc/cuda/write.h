// The write: noise on the elements that a bitmap names, all of them or none.
#ifndef FASTUNLEARN_CUDA_WRITE_H_
#define FASTUNLEARN_CUDA_WRITE_H_

#include <cstdint>

#include "cuda/table.h"
#include "cuda/workspace.h"

namespace fastunlearn::cuda {

// How the selected elements change; the scale stands in the tensors.
struct Change {
  NoiseKind noise;
  UpdateMode mode;
  Rounding rounding;
  bool allow_overflow;
};

// Whether an overflow would have to leave every weight as it was.
inline bool may_refuse(const Change& change) {
  return !change.allow_overflow && change.mode != UpdateMode::kZero;
}

// Bytes of the greatest element of any weight.
//   tensors: shape (count,), on the host
inline int64_t most_item_bytes(const Tensor* tensors, int count) {
  int64_t most = 0;
  for (int i = 0; i < count; ++i) {
    const int64_t bytes = item_bytes(tensors[i].weight.dtype);
    most = bytes > most ? bytes : most;
  }
  return most;
}

// What the write needs besides the bitmap.
struct WriteRoom {
  void* journal;           // old values, or null where weights are screened instead
  int64_t* journal_begin;  // shape (tiles,): number of the first old value of each tile
  int64_t item_bytes;      // from one old value to the next
  bool many;               // so many elements are selected that a tile is work for a block
};

// Takes room for the write of `selected` elements out of `numel`, of at most `item_bytes` each.
WriteRoom take_write_room(Workspace* workspace, int64_t tiles, int64_t numel, int64_t selected,
                          int64_t item_bytes, const Change& change);

// Writes the elements whose bit is set unless header->refused is set; where a finite weight would
// overflow and that is not allowed, every bit stays as it was, or becomes so again.
//   bits: shape (tiles, kTileWords), bit i of a tile is its element i
//   stats: shape (count, kStatColumns); adds to the columns selected, overflow and unchanged
cudaError_t write(const Table& table, const uint32_t* bits, const Change& change,
                  const WriteRoom& room, int64_t* stats, const Device& device);

// Counts the set bits of each tensor into the column selected.
cudaError_t count_selected(const Table& table, const uint32_t* bits, int64_t* stats,
                           const Device& device);

}  // namespace fastunlearn::cuda

#endif  // FASTUNLEARN_CUDA_WRITE_H_
