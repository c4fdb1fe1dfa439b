#include "cpu/cut.h"

#include <algorithm>
#include <array>
#include <vector>

#include "cpu/bracket.h"

namespace fastunlearn {
namespace {

// Threshold key, number of keys above it and equal to it.
struct Threshold {
  uint32_t key;
  int64_t above, ties;
};

// Counts of keys in equal ranges, by each thread for itself.
class Histogram {
 public:
  Histogram(int bins, int threads) : bins_(bins), counts_(threads) {}

  // Not shared between threads; made on first use.
  uint64_t* own(int worker) {
    if (counts_[worker].empty()) counts_[worker].resize(bins_);
    return counts_[worker].data();
  }

  // Finds the bin of the rank-th greatest key (1 <= rank); *rank becomes the rank within it. The
  // lowest bin where fewer keys were met, as may be when somebody changes the scores meanwhile.
  int find(int64_t* rank, int64_t* in_bin) const {
    for (int bin = bins_ - 1;; --bin) {
      int64_t count = 0;
      for (const auto& counts : counts_)
        count += counts.empty() ? 0 : static_cast<int64_t>(counts[bin]);
      if (*rank <= count || bin == 0) {
        *in_bin = count;
        return bin;
      }
      *rank -= count;
    }
  }

 private:
  int bins_;
  std::vector<std::vector<uint64_t>> counts_;
};

class CutFinder {
 public:
  CutFinder(const KeyReader& keys, const std::vector<Parameter>& parameters, const Chunks& chunks,
            const Problem& problem, Bracket bracket, const Execution& execution,
            const Records& records)
      : keys_(keys),
        parameters_(parameters),
        chunks_(chunks),
        problem_(problem),
        bracket_(bracket),
        execution_(execution),
        records_(records) {}

  Cut find() {
    Cut cut;
    Threshold found;
    cut.recorded = decide(&found);
    if (!cut.recorded) found = by_radix();
    cut.key = found.key;
    cut.ties = found.ties;
    cut.ties_taken = problem_.k - found.above;
    cut.last_tie = cut.ties_taken == cut.ties ? kEveryTie : last_tie(cut);
    return cut;
  }

 private:
  bool strictly_inside(uint32_t key) const { return key > bracket_.lo && key < bracket_.hi; }

  // Decides from the counts of the streaming read; false where the bracket missed.
  bool decide(Threshold* found) const {
    int64_t above = 0, at_hi = 0, inside = 0, at_lo = 0;
    for (int64_t i = problem_.first; i < problem_.last; ++i) {
      const ChunkRecord& record = records_[i];
      above += record.sure;
      at_hi += record.at_hi;
      at_lo += record.at_lo;
      inside += record.maybe - record.at_hi - record.at_lo;
    }
    const int64_t k = problem_.k;
    if (k <= above || k > above + at_hi + inside + at_lo) return false;
    if (k <= above + at_hi) {
      *found = {bracket_.hi, above, at_hi};
    } else if (k > above + at_hi + inside) {
      *found = {bracket_.lo, above + at_hi + inside, at_lo};
    } else {
      *found = among_inside(k - above - at_hi, inside);
      found->above += above + at_hi;
    }
    return true;
  }

  // Calls body(worker, key) for every recorded key strictly inside the bracket.
  template <class Body>
  void for_each_inside(const Body& body) const {
    chunks_.for_each(problem_.first, problem_.last, execution_.threads,
                     [&](int worker, int64_t chunk) {
                       const ChunkRecord& record = records_[chunk];
                       for (int i = 0; i < record.num_keys; ++i) {
                         if (strictly_inside(record.maybe_key[i])) {
                           body(worker, record.maybe_key[i]);
                         }
                       }
                     });
  }

  // The rank-th greatest of `count` keys strictly inside: one histogram, then one of its bins.
  Threshold among_inside(int64_t rank, int64_t count) const {
    constexpr int kBins = 1 << 11;
    int shift = 0;
    while ((bracket_.hi - bracket_.lo) >> shift >= kBins) ++shift;
    const auto bin_of = [&](uint32_t key) { return (key - bracket_.lo) >> shift; };
    int64_t before = rank, in_bin = count;
    uint32_t bin = 0;
    if (count > kBins) {
      Histogram histogram(kBins, execution_.threads);
      for_each_inside([&](int worker, uint32_t key) { ++histogram.own(worker)[bin_of(key)]; });
      bin = static_cast<uint32_t>(histogram.find(&rank, &in_bin));
    }
    before -= rank;
    std::vector<std::vector<uint32_t>> parts(execution_.threads);
    for_each_inside([&](int worker, uint32_t key) {
      if (count <= kBins || bin_of(key) == bin) parts[worker].push_back(key);
    });
    std::vector<uint32_t> chosen;
    chosen.reserve(in_bin);
    for (const auto& part : parts) chosen.insert(chosen.end(), part.begin(), part.end());
    if (chosen.empty()) return {bracket_.lo, before, 0};  // see Histogram::find
    const auto found = static_cast<int64_t>(chosen.size());
    const uint32_t key = kth_greatest(chosen.data(), found, std::min(rank, found));
    const auto above = std::count_if(chosen.begin(), chosen.end(), [=](auto x) { return x > key; });
    return {key, before + above, std::count(chosen.begin(), chosen.end(), key)};
  }

  // The bracket missed: exact by two histograms, of the high and of the low bits of all keys.
  Threshold by_radix() const {
    constexpr int kLowBits = 15;
    int64_t rank = problem_.k, in_bin = 0;
    Histogram high(1 << 16, execution_.threads);
    for_each_key([&](int worker, uint32_t key) { ++high.own(worker)[key >> kLowBits]; });
    const auto prefix = static_cast<uint32_t>(high.find(&rank, &in_bin));
    Histogram low(1 << kLowBits, execution_.threads);
    for_each_key([&](int worker, uint32_t key) {
      if (key >> kLowBits == prefix) ++low.own(worker)[key & ((1u << kLowBits) - 1)];
    });
    const auto digit = static_cast<uint32_t>(low.find(&rank, &in_bin));
    return {prefix << kLowBits | digit, problem_.k - rank, in_bin};
  }

  template <class Body>
  void for_each_key(const Body& body) const {
    chunks_.for_each(
        problem_.first, problem_.last, execution_.threads, [&](int worker, int64_t number) {
          const Chunk& chunk = chunks_[number];
          for (int first = 0; first < chunk.count; first += kBlock) {
            const int count = std::min(kBlock, chunk.count - first);
            const ScoreBlock block = keys_.block(chunk, first, count, &thread_room<BlockBuffer>());
            for (int i = 0; i < count; ++i) body(worker, block.key(i));
          }
        });
  }

  // Number of keys equal to `key` among the first `count` elements of a chunk.
  int count_ties(const Chunk& chunk, int count, uint32_t key) const {
    std::array<uint64_t, kChunk / 64> sure, equal;
    return keys_
        .scan_chunk(chunk, count, {key, key}, &thread_room<BlockBuffer>(), sure.data(),
                    equal.data())
        .maybe;
  }

  // Ties in each whole chunk, from the records where these tell.
  std::vector<int> ties_of_chunks(const Cut& cut) const {
    std::vector<int> ties(problem_.last - problem_.first);
    chunks_.for_each(problem_.first, problem_.last, execution_.threads, [&](int, int64_t chunk) {
      const ChunkRecord& record = records_[chunk];
      int& found = ties[chunk - problem_.first];
      if (!cut.recorded) {
        found = count_ties(chunks_[chunk], chunks_[chunk].count, cut.key);
      } else if (cut.key == bracket_.hi) {
        found = record.at_hi;
      } else if (cut.key == bracket_.lo) {
        found = record.at_lo;
      } else {
        found = static_cast<int>(
            std::count(record.maybe_key, record.maybe_key + record.num_keys, cut.key));
      }
    });
    return ties;
  }

  // The flat index up to which ties_taken ties lie, by bisection: whole chunks are counted by their
  // sums, and at most one chunk of each parameter is read. Parameters may interleave.
  int64_t last_tie(const Cut& cut) const {
    const std::vector<int> ties = ties_of_chunks(cut);
    int64_t below = INT64_MAX, end = 0;
    for (int64_t i = problem_.first; i < problem_.last; ++i) {
      const Segment& segment = parameters_[chunks_[i].parameter].segment;
      below = std::min(below, segment.base);
      end = std::max(end, segment.end());
    }
    while (end - below > 1) {  // ties below `below` < ties_taken <= ties below `end`
      const int64_t middle = below + (end - below) / 2;
      if (ties_below(middle, cut, ties) < cut.ties_taken) {
        below = middle;
      } else {
        end = middle;
      }
    }
    return end - 1;
  }

  int64_t ties_below(int64_t index, const Cut& cut, const std::vector<int>& ties) const {
    int64_t found = 0;
    for (int64_t i = problem_.first; i < problem_.last; ++i) {
      const int in_chunk = ties[i - problem_.first];
      if (in_chunk == 0) continue;
      const Chunk& chunk = chunks_[i];
      const int64_t reach = parameters_[chunk.parameter].segment.count_below(index) - chunk.start;
      if (reach >= chunk.count) {
        found += in_chunk;
      } else if (reach > 0) {
        found += count_ties(chunk, static_cast<int>(reach), cut.key);
      }
    }
    return found;
  }

  const KeyReader& keys_;
  const std::vector<Parameter>& parameters_;
  const Chunks& chunks_;
  const Problem problem_;
  const Bracket bracket_;
  const Execution& execution_;
  const Records& records_;
};

}  // namespace

Cut find_cut(const KeyReader& keys, const std::vector<Parameter>& parameters, const Chunks& chunks,
             const Problem& problem, Bracket bracket, const Execution& execution,
             const Records& records) {
  return CutFinder(keys, parameters, chunks, problem, bracket, execution, records).find();
}

}  // namespace fastunlearn
