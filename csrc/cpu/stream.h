// The one streaming read of Top-K: what lies above a bracket, and what lies inside of it.
#ifndef FASTUNLEARN_CPU_STREAM_H_
#define FASTUNLEARN_CPU_STREAM_H_

#include <cstdint>
#include <vector>

#include "cpu/arena.h"
#include "cpu/key_reader.h"

namespace fastunlearn {

// What the read leaves of a chunk. "Sure" are the keys above the bracket, "maybe" those in it, its
// two ends included.
struct ChunkRecord {
  int sure = 0;
  int maybe = 0;
  int at_hi = 0;  // of the maybe: keys equal to the upper end
  int at_lo = 0;  // keys equal to the lower end, where that differs
  // Places of the sure: a list, ascending, or where that would be longer one bit for each element.
  const uint16_t* sure_list = nullptr;
  const uint64_t* sure_bits = nullptr;
  // Keys of the maybe with their places; where there are too many (ties, mostly) no places are
  // kept, and of the keys only those strictly inside.
  bool listed = true;
  int num_keys = 0;
  const uint32_t* maybe_key = nullptr;
  const uint16_t* maybe_place = nullptr;
};

// Records of the chunks of a call, and the memory they point into.
class Records {
 public:
  Records(int64_t chunks, int threads) : records_(chunks), arenas_(threads) {}

  ChunkRecord& operator[](int64_t chunk) { return records_[chunk]; }
  const ChunkRecord& operator[](int64_t chunk) const { return records_[chunk]; }
  Arena& arena(int worker) { return arenas_[worker]; }

 private:
  std::vector<ChunkRecord> records_;
  std::vector<Arena> arenas_;
};

// Reads chunks first .. last once and fills their records. Returns the greatest key.
uint32_t stream(const KeyReader& keys, const Chunks& chunks, int64_t first, int64_t last,
                Bracket bracket, const Execution& execution, Records* records);

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CPU_STREAM_H_
