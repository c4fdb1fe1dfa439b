#include "cpu/stream.h"

#include <algorithm>

namespace fastunlearn {
namespace {

template <class T>
const T* keep(const T* values, int count, Arena* arena) {
  T* const out = arena->allocate<T>(count);
  std::copy_n(values, count, out);
  return out;
}

// Room that one thread needs to read a chunk.
struct StreamRoom {
  BlockBuffer buffer;
  uint64_t sure[kChunk / 64];
  uint64_t maybe[kBlock / 64];
  uint32_t key[kChunk];
  uint16_t place[kChunk + kExpandSlack];
};

// The reading of one chunk.
class ChunkStream {
 public:
  ChunkStream(const KeyReader& keys, const Kernels& kernels, Bracket bracket, StreamRoom* room)
      : keys_(keys),
        kernels_(kernels),
        bracket_(bracket),
        buffer_(room->buffer),
        sure_(room->sure),
        maybe_(room->maybe),
        key_(room->key),
        place_(room->place) {}

  // Returns the greatest key.
  uint32_t read(const Chunk& chunk, Arena* arena, ChunkRecord* record) {
    for (int first = 0; first < chunk.count; first += kBlock) {
      read_block(keys_.block(chunk, first, std::min(kBlock, chunk.count - first), &buffer_), first,
                 record);
    }
    keep_sure((chunk.count + 63) / 64, arena, record);
    record->num_keys = num_keys_;
    record->maybe_key = keep(key_, num_keys_, arena);
    if (record->listed) record->maybe_place = keep(place_, num_keys_, arena);
    return greatest_;
  }

 private:
  void read_block(const ScoreBlock& block, int first, ChunkRecord* record) {
    const int words = (block.count + 63) / 64;
    uint64_t* const sure = sure_ + first / 64;
    const Scan found = keys_.scan(block, bracket_, sure, maybe_);
    greatest_ = std::max(greatest_, found.greatest);
    record->sure += found.sure;
    if (record->listed && record->maybe + found.maybe > kMaybeLimit) unlist(record);
    record->maybe += found.maybe;
    if (found.maybe == 0) return;
    if (record->listed) {
      list_maybe(block, first, words, record);
    } else {
      collect_inside(block, words, found, record);
    }
  }

  void list_maybe(const ScoreBlock& block, int first, int words, ChunkRecord* record) {
    uint16_t* const place = place_ + num_keys_;
    const int found = kernels_.expand(maybe_, words, first, place);
    for (int i = 0; i < found; ++i) {
      const uint32_t key = block.key(place[i] - first);
      key_[num_keys_ + i] = key;
      record->at_hi += key == bracket_.hi;
      record->at_lo += key == bracket_.lo && bracket_.lo != bracket_.hi;
    }
    num_keys_ += found;
  }

  // Too many: forget the places, and the keys at the ends of the bracket.
  void unlist(ChunkRecord* record) {
    record->listed = false;
    uint32_t* const end = std::remove_if(key_, key_ + num_keys_, [this](uint32_t key) {
      return key == bracket_.hi || key == bracket_.lo;
    });
    num_keys_ = static_cast<int>(end - key_);
  }

  // The ends are told from the inside by a second scan, with the bracket drawn in by one.
  void collect_inside(const ScoreBlock& block, int words, Scan outer, ChunkRecord* record) {
    if (bracket_.lo == bracket_.hi) {
      record->at_hi += outer.maybe;
      return;
    }
    uint64_t reach[kBlock / 64], inside[kBlock / 64];
    const Scan inner = keys_.scan(block, {bracket_.lo + 1, bracket_.hi - 1}, reach, inside);
    kernels_.expand(inside, words, 0, place_);
    for (int i = 0; i < inner.maybe; ++i) key_[num_keys_++] = block.key(place_[i]);
    const int at_hi = inner.sure - outer.sure;
    record->at_hi += at_hi;
    record->at_lo += outer.maybe - at_hi - inner.maybe;
  }

  void keep_sure(int words, Arena* arena, ChunkRecord* record) {
    if (record->sure > kSureLimit) {
      record->sure_bits = keep(sure_, words, arena);
    } else if (record->sure > 0) {
      uint16_t list[kSureLimit + kExpandSlack];
      kernels_.expand(sure_, words, 0, list);
      record->sure_list = keep(list, record->sure, arena);
    }
  }

  const KeyReader& keys_;
  const Kernels& kernels_;
  const Bracket bracket_;
  uint32_t greatest_ = 0;
  int num_keys_ = 0;
  BlockBuffer& buffer_;
  uint64_t* const sure_;
  uint64_t* const maybe_;
  uint32_t* const key_;
  uint16_t* const place_;
};

}  // namespace

uint32_t stream(const KeyReader& keys, const Chunks& chunks, int64_t first, int64_t last,
                Bracket bracket, const Execution& execution, Records* records) {
  std::vector<uint32_t> greatest(execution.threads);
  chunks.for_each(first, last, execution.threads, [&](int worker, int64_t chunk) {
    ChunkStream reading(keys, *execution.kernels, bracket, &thread_room<StreamRoom>());
    const uint32_t key = reading.read(chunks[chunk], &records->arena(worker), &(*records)[chunk]);
    greatest[worker] = std::max(greatest[worker], key);
  });
  return *std::max_element(greatest.begin(), greatest.end());
}

}  // namespace fastunlearn
