#include "cpu/topk.h"

#include <algorithm>
#include <functional>
#include <memory>

#include "cpu/bracket.h"

namespace fastunlearn {
namespace {

// The selection of a call, from the first read to the choice.
class Selection {
 public:
  Selection(const TopK& topk, const Execution& execution)
      : topk_(topk),
        execution_(execution),
        chunks_(topk.parameters),
        keys_(topk.parameters, topk.score, topk.nan, execution.kernels),
        records_(chunks_.size(), execution.threads),
        choice_(keys_, topk.parameters, chunks_, records_, *execution.kernels) {}

  const Chunks& chunks() const { return chunks_; }
  const Choice& choice() const {
    if (settled_) return *settled_;
    return choice_;
  }

  // Finds all cuts and fills in what they say of the statistics. False, with the NaN counted
  // instead, where a score is a refused NaN.
  bool select(int64_t* stats) {
    const size_t count = topk_.parameters.size();
    std::fill(stats, stats + count * kStatColumns, 0);
    if (topk_.per_tensor) {
      for (size_t i = 0; i < count; ++i) solve(i, i + 1, topk_.k[i], stats);
    } else {
      solve(0, count, topk_.k[0], stats);
    }
    if (!keys_.refuses_nan() || greatest_ <= kInfinityKey) return true;
    std::fill(stats, stats + count * kStatColumns, 0);
    count_nan(stats);
    return false;
  }

  // Where scores share memory with other weights than their own, a write could change a choice that
  // is still to be made: all are made first.
  void settle_if_aliased() {
    if (aliased()) settled_.reset(new BitChoice(choice_, chunks_, execution_.threads));
  }

 private:
  // One problem: the parameters begin .. end.
  void solve(size_t begin, size_t end, int64_t k, int64_t* stats) {
    const Problem problem{chunks_.first(begin), chunks_.last(end - 1), k};
    const Execution execution = limited(problem);
    Cut cut;
    Bracket bracket{kMagnitude, kMagnitude};  // K = 0 still lets a NaN be met
    if (k > 0) {
      bracket = find_bracket(keys_, chunks_, problem.first, problem.last, k, execution);
    }
    if (problem.first < problem.last && (k > 0 || keys_.refuses_nan())) {
      const uint32_t greatest =
          stream(keys_, chunks_, problem.first, problem.last, bracket, execution, &records_);
      greatest_ = std::max(greatest_, greatest);
    }
    if (k > 0) {
      cut = find_cut(keys_, topk_.parameters, chunks_, problem, bracket, execution, records_);
    }
    for (size_t i = begin; i < end; ++i) {
      choice_.set(i, cut, bracket);
      int64_t* const row = stats + i * kStatColumns;
      row[kStatThreshold] = cut.ties > 0 ? int64_t{cut.key} : -1;
      row[kStatTies] = cut.ties;
      row[kStatTiesTaken] = cut.ties_taken;
    }
  }

  // No more threads than the problem keeps busy.
  Execution limited(const Problem& problem) const {
    const int64_t elements = chunks_.elements(problem.first, problem.last);
    Execution out = execution_;
    out.threads = reading_threads(elements, out.threads);
    return out;
  }

  void count_nan(int64_t* stats) const {
    std::vector<int64_t> found(chunks_.size());
    chunks_.for_each(0, chunks_.size(), execution_.threads, [&](int, int64_t number) {
      ChoiceRoom* const room = &thread_room<ChoiceRoom>();
      const int count = chunks_[number].count;
      const Bracket infinity{kInfinityKey, kInfinityKey};
      found[number] =
          keys_.scan_chunk(chunks_[number], count, infinity, &room->buffer, room->bits, room->ties)
              .sure;
    });
    for (int64_t i = 0; i < chunks_.size(); ++i) {
      stats[chunks_[i].parameter * kStatColumns + kStatNan] += found[i];
    }
  }

  bool aliased() const {
    struct Span {
      const char* begin;
      const char* end;
      bool is_weight;
    };
    std::vector<Span> spans;
    for (const Parameter& parameter : topk_.parameters) {
      if (parameter.weight.numel() == 0) continue;
      spans.push_back({parameter.weight.begin_bytes(), parameter.weight.end_bytes(), true});
      if (parameter.score.same_as(parameter.weight)) continue;
      spans.push_back({parameter.score.begin_bytes(), parameter.score.end_bytes(), false});
    }
    std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) {
      return std::less<const char*>()(a.begin, b.begin);
    });
    const char* reach[2] = {nullptr, nullptr};  // end of the scores, of the weights, so far
    for (const Span& span : spans) {
      const char* const other = reach[span.is_weight ? 0 : 1];
      if (other != nullptr && std::less<const char*>()(span.begin, other)) return true;
      const char*& own = reach[span.is_weight ? 1 : 0];
      if (own == nullptr || std::less<const char*>()(own, span.end)) own = span.end;
    }
    return false;
  }

  const TopK& topk_;
  const Execution execution_;
  const Chunks chunks_;
  const KeyReader keys_;
  Records records_;
  CutChoice choice_;
  std::unique_ptr<BitChoice> settled_;
  uint32_t greatest_ = 0;
};

}  // namespace

void topk_perturb(const TopK& topk, const Change& change, const Execution& execution,
                  int64_t* stats) {
  Selection selection(topk, execution);
  if (!selection.select(stats)) return;
  selection.settle_if_aliased();
  perturb(topk.parameters, selection.chunks(), selection.choice(), change, execution, stats);
}

void topk_select(const TopK& topk, const Execution& execution, const std::vector<uint8_t*>& packed,
                 int64_t* stats) {
  Selection selection(topk, execution);
  if (!selection.select(stats)) {
    for (size_t i = 0; i < packed.size(); ++i) {
      std::fill_n(packed[i], (topk.parameters[i].weight.numel() + 7) / 8, uint8_t{0});
    }
    return;
  }
  pack(selection.chunks(), selection.choice(), execution, packed, stats);
}

void pack(const Chunks& chunks, const Choice& choice, const Execution& execution,
          const std::vector<uint8_t*>& packed, int64_t* stats) {
  std::vector<int> counts(chunks.size());
  chunks.for_each(0, chunks.size(), execution.threads, [&](int, int64_t number) {
    ChoiceRoom* const room = &thread_room<ChoiceRoom>();
    const Chunk& chunk = chunks[number];
    const Chosen chosen = choice.choose(number, room);
    const uint64_t* const bits = as_bits(chosen, chunk.count, room);
    uint8_t* const out = packed[chunk.parameter] + chunk.start / 8;
    for (int i = 0; i < (chunk.count + 7) / 8; ++i) {
      out[i] = static_cast<uint8_t>(bits[i / 8] >> 8 * (i % 8));
    }
    counts[number] = chosen.count;
  });
  for (int64_t i = 0; i < chunks.size(); ++i) {
    stats[chunks[i].parameter * kStatColumns + kStatSelected] += counts[i];
  }
}

}  // namespace fastunlearn
