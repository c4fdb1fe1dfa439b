#include "cpu/counts.h"

#include <algorithm>

#include "cpu/choice.h"

namespace fastunlearn {
namespace {

// Rows of counts, by each thread for itself; a row is made when it is first counted to.
class Tables {
 public:
  Tables(int64_t rows, int64_t columns, int threads)
      : columns_(columns), tables_(threads, std::vector<std::vector<int64_t>>(rows)) {}

  int64_t* own(int worker, int64_t row) {
    std::vector<int64_t>& found = tables_[worker][row];
    if (found.empty()) found.resize(columns_);
    return found.data();
  }

  void sum(int64_t* counts) const {
    const auto rows = static_cast<int64_t>(tables_[0].size());
    std::fill(counts, counts + rows * columns_, 0);
    for (const auto& table : tables_) {
      for (int64_t row = 0; row < rows; ++row) {
        for (size_t i = 0; i < table[row].size(); ++i) counts[row * columns_ + i] += table[row][i];
      }
    }
  }

 private:
  int64_t columns_;
  std::vector<std::vector<std::vector<int64_t>>> tables_;
};

// Calls body(place) for every set bit.
template <class Body>
void for_each_bit(const uint64_t* words, int count, const Body& body) {
  for (int i = 0; i < (count + 63) / 64; ++i) {
    for (uint64_t word = words[i]; word != 0; word &= word - 1) {
      body(64 * i + __builtin_ctzll(word));
    }
  }
}

class Counter {
 public:
  Counter(const Counted& counted, const Bins& bins, const Execution& execution, int64_t extra)
      : counted_(counted),
        bins_(bins),
        execution_(execution),
        chunks_(counted.parameters),
        keys_(counted.parameters, counted.score, counted.nan, execution.kernels),
        tables_(static_cast<int64_t>(bins.first.size()), bins.bins + extra, execution.threads) {}

  void count_keys(int64_t* counts) {
    for_each_chunk([&](int worker, const Chunk& chunk, int64_t row) {
      int64_t* const table = tables_.own(worker, row);
      const int64_t low = bins_.first[row];
      const int64_t end = low + (bins_.bins << bins_.shift);
      if (low <= 0 && end > kMagnitude) {
        count_all(chunk, low, table);
      } else {
        count_between(chunk, low, end, table);
      }
    });
    tables_.sum(counts);
  }

  void count_ties(const std::vector<int64_t>& key, int64_t* counts) {
    for_each_chunk([&](int worker, const Chunk& chunk, int64_t row) {
      if (key[row] < 0) return;
      const auto tie = static_cast<uint32_t>(key[row]);
      ChoiceRoom* const room = &thread_room<ChoiceRoom>();
      const Scan scan =
          keys_.scan_chunk(chunk, chunk.count, {tie, tie}, &room->buffer, room->bits, room->ties);
      if (scan.maybe == 0) return;
      int64_t* const table = tables_.own(worker, row);
      const Segment& segment = counted_.parameters[chunk.parameter].segment;
      for_each_bit(room->ties, chunk.count, [&](int place) {
        add(segment.to_global(chunk.start + place) - bins_.first[row], table);
      });
    });
    tables_.sum(counts);
  }

 private:
  template <class Body>
  void for_each_chunk(const Body& body) const {
    chunks_.for_each(0, chunks_.size(), execution_.threads, [&](int worker, int64_t number) {
      body(worker, chunks_[number], counted_.row[chunks_[number].parameter]);
    });
  }

  void add(int64_t distance, int64_t* table) const {
    const int64_t bin = distance >> bins_.shift;
    if (bin >= 0 && bin < bins_.bins) ++table[bin];
  }

  template <class Body>
  void for_each_key(const Chunk& chunk, const Body& body) const {
    for (int first = 0; first < chunk.count; first += kBlock) {
      const int count = std::min(kBlock, chunk.count - first);
      const ScoreBlock block = keys_.block(chunk, first, count, &thread_room<BlockBuffer>());
      for (int i = 0; i < count; ++i) body(block.key(i));
    }
  }

  // Every key falls into a bin.
  void count_all(const Chunk& chunk, int64_t low, int64_t* table) const {
    uint32_t greatest = 0;
    for_each_key(chunk, [&](uint32_t key) {
      ++table[(key - low) >> bins_.shift];
      greatest = std::max(greatest, key);
    });
    if (keys_.refuses_nan() && greatest > kInfinityKey) count_nan(chunk, table);
  }

  // Few keys do, mostly: the scan finds them.
  void count_between(const Chunk& chunk, int64_t low, int64_t end, int64_t* table) const {
    ChoiceRoom* const room = &thread_room<ChoiceRoom>();
    const Bracket bracket{static_cast<uint32_t>(std::max<int64_t>(low, 0)),
                          static_cast<uint32_t>(std::min<int64_t>(end - 1, kMagnitude))};
    const Scan scan =
        keys_.scan_chunk(chunk, chunk.count, bracket, &room->buffer, room->bits, room->ties);
    if (scan.maybe != 0) {
      for_each_bit(room->ties, chunk.count, [&](int place) {
        add(int64_t{keys_.at(chunk.parameter, chunk.start + place)} - low, table);
      });
    }
    if (keys_.refuses_nan() && scan.greatest > kInfinityKey) count_nan(chunk, table);
  }

  void count_nan(const Chunk& chunk, int64_t* table) const {
    for_each_key(chunk, [&](uint32_t key) { table[bins_.bins] += key > kInfinityKey; });
  }

  const Counted& counted_;
  const Bins& bins_;
  const Execution& execution_;
  const Chunks chunks_;
  const KeyReader keys_;
  Tables tables_;
};

}  // namespace

void key_histogram(const Counted& counted, const Bins& bins, const Execution& execution,
                   int64_t* counts) {
  Counter(counted, bins, execution, 1).count_keys(counts);
}

void tie_histogram(const Counted& counted, const std::vector<int64_t>& key, const Bins& bins,
                   const Execution& execution, int64_t* counts) {
  Counter(counted, bins, execution, 0).count_ties(key, counts);
}

}  // namespace fastunlearn
