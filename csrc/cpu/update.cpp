#include "cpu/update.h"

#include <algorithm>
#include <cmath>
#include <memory>

namespace fastunlearn {
namespace {

// What was done to a chunk.
struct Outcome {
  int selected = 0;
  Tally tally;
};

// Bytes of journal that a chunk may need: the old value and the place of each of its elements.
int64_t journal_bytes(const std::vector<Parameter>& parameters, const Chunk& chunk,
                      int64_t at_most) {
  const int64_t item = item_bytes(parameters[chunk.parameter].weight.dtype());
  return at_most * (item + static_cast<int64_t>(sizeof(uint16_t)));
}

// Places and old values of the elements that were written, to undo it. Room for all chunks, as many
// elements as Choice::at_most says, is there before the first write.
class Journal {
 public:
  Journal(const std::vector<Parameter>& parameters, const Chunks& chunks, const Choice& choice)
      : rooms_(chunks.size()) {
    for (int64_t i = 0; i < chunks.size(); ++i) {
      const int64_t bytes = journal_bytes(parameters, chunks[i], choice.at_most(i));
      if (bytes > 0) rooms_[i] = arena_.allocate<char>(bytes);
    }
  }

  // Old values of a chunk's elements, then their places.
  template <class T>
  T* values(int64_t chunk) const {
    return reinterpret_cast<T*>(rooms_[chunk]);
  }
  template <class T>
  uint16_t* places(int64_t chunk, int count) const {
    return reinterpret_cast<uint16_t*>(values<T>(chunk) + count);
  }

 private:
  Arena arena_;
  std::vector<char*> rooms_;
};

// Room that one thread needs to write.
struct WriteRoom {
  ChoiceRoom choice;
  uint64_t index[kNoiseBatch];
  uint32_t words[kNoiseBatch + 128];
  float z[kNoiseBatch + 128];
  uint32_t rounding[kNoiseBatch + 128];
};

class Writer {
 public:
  Writer(const std::vector<Parameter>& parameters, const Chunks& chunks, const Choice& choice,
         const Change& change, const Execution& execution)
      : parameters_(parameters),
        chunks_(chunks),
        choice_(choice),
        change_(change),
        execution_(execution),
        kernels_(*execution.kernels),
        rooms_(worker_rooms<WriteRoom>(
            reading_threads(chunks.elements(0, chunks.size()), execution.threads))),
        outcomes_(chunks.size()) {}

  const std::vector<Outcome>& outcomes() const { return outcomes_; }

  // Works through all chunks; writes where `commit`. Nothing is allocated here: a failure would
  // leave some of the chunks written.
  void run(bool commit, const Journal* journal) {
    commit_ = commit;
    journal_ = journal;
    chunks_.for_each(0, chunks_.size(), execution_.threads,
                     [this](int worker, int64_t chunk) { write(chunk, rooms_[worker].get()); });
  }

  int64_t overflow() const {
    int64_t total = 0;
    for (const Outcome& outcome : outcomes_) total += outcome.tally.overflow;
    return total;
  }

  void undo(const Journal& journal) {
    chunks_.for_each(0, chunks_.size(), execution_.threads, [&](int, int64_t chunk) {
      const TensorView& weight = parameters_[chunks_[chunk].parameter].weight;
      dispatch(weight.dtype(), [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        const int count = outcomes_[chunk].selected;
        const T* const old = journal.values<T>(chunk);
        const uint16_t* const place = journal.places<T>(chunk, count);
        T* const data = static_cast<T*>(weight.data());
        for (int i = 0; i < count; ++i) {
          data[weight.offset(chunks_[chunk].start + place[i])] = old[i];
        }
      });
    });
  }

 private:
  void write(int64_t chunk, WriteRoom* room) {
    Chosen chosen = choice_.choose(chunk, &room->choice);
    if (journal_ != nullptr) {  // whose room is bounded, even if somebody changes the scores
      chosen.count = static_cast<int>(std::min<int64_t>(chosen.count, choice_.at_most(chunk)));
    }
    outcomes_[chunk] = {chosen.count, {}};
    if (chosen.count == 0) return;
    const TensorView& weight = parameters_[chunks_[chunk].parameter].weight;
    const bool by_block = journal_ == nullptr && chosen.bits != nullptr && weight.contiguous();
    dispatch(weight.dtype(), [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      if constexpr (!std::is_same_v<T, double>) {
        if (by_block) return write_blocks<T>(chunk, chosen, room);
      }
      const int count = chunks_[chunk].count;
      const uint16_t* const list = as_list(chosen, count, kernels_, &room->choice);
      write_list<T>(chunk, list, chosen.count, room);
    });
  }

  RowChange row_change(int64_t chunk) const {
    return {change_.scale[chunks_[chunk].parameter], change_.mode, change_.rounding};
  }

  template <class T>
  bool rounds_by_words() const {
    return fastunlearn::rounds_by_words<T>(change_.mode, change_.rounding);
  }

  // Contiguous weights, a batch at a time: noise for the chosen, packed, then one pass of the
  // batch.
  template <class T>
  void write_blocks(int64_t chunk, const Chosen& chosen, WriteRoom* room) {
    const Chunk& found = chunks_[chunk];
    T* const data = static_cast<T*>(parameters_[found.parameter].weight.data()) + found.start;
    Tally tally;
    for (int first = 0; first < found.count; first += kNoiseBatch) {
      const int count = std::min(kNoiseBatch, found.count - first);
      const uint64_t* const mask = chosen.bits + first / 64;
      const int selected = kernels_.count(mask, (count + 63) / 64);
      if (selected == 0) continue;
      const Drawn drawn =
          draw_packed(chunk, {first, count, mask, selected}, rounds_by_words<T>(), room);
      update_block(data + first, drawn, mask, count, row_change(chunk), &tally);
    }
    outcomes_[chunk].tally = tally;
  }

  // A batch of a chunk, of which some elements are chosen.
  struct Batch {
    int first, count;
    const uint64_t* mask;
    int selected;
  };

  // Draws for the chosen, in their order. Where many are chosen the words of all are made, four
  // from each Philox block, and the others dropped.
  Drawn draw_packed(int64_t chunk, const Batch& batch, bool rounding, WriteRoom* room) {
    const Segment& segment = parameters_[chunks_[chunk].parameter].segment;
    if (batch.selected * kDenseShare < batch.count || !segment.one_row() ||
        change_.mode == UpdateMode::kZero) {
      kernels_.expand(batch.mask, (batch.count + 63) / 64, batch.first, room->choice.list);
      return draw(chunk, room->choice.list, batch.selected, rounding, room);
    }
    const int64_t start = chunks_[chunk].start + batch.first;
    const auto index = static_cast<uint64_t>(segment.to_global(start));
    const auto packed = [&](uint32_t stream, uint32_t* words) {
      const int skip = static_cast<int>(index & 3);
      const int blocks = (skip + batch.count + 3) / 4;
      kernels_.words_from(index >> 2, blocks, change_.rng, stream, words);
      kernels_.pack(words + skip, batch.mask, batch.count);
      return words + skip;
    };
    const uint32_t* const words = packed(kStreamNoise, room->words);
    kernels_.noise(change_.noise, words, batch.selected, room->z);
    return {room->z, rounding ? packed(kStreamRounding, room->rounding) : nullptr};
  }

  void update_block(float* w, Drawn drawn, const uint64_t* mask, int count, RowChange change,
                    Tally* tally) {
    kernels_.update_f32(w, drawn, mask, count, change, commit_, tally);
  }
  void update_block(BFloat16* w, Drawn drawn, const uint64_t* mask, int count, RowChange change,
                    Tally* tally) {
    kernels_.update_bf16(w, drawn, mask, count, change, commit_, tally);
  }
  void update_block(Float16* w, Drawn drawn, const uint64_t* mask, int count, RowChange change,
                    Tally* tally) {
    kernels_.update_f16(w, drawn, mask, count, change, commit_, tally);
  }

  template <class T>
  void write_list(int64_t chunk, const uint16_t* list, int count, WriteRoom* room) {
    const TensorView& weight = parameters_[chunks_[chunk].parameter].weight;
    T* old = nullptr;
    if (journal_ != nullptr) {
      old = journal_->values<T>(chunk);
      std::copy(list, list + count, journal_->places<T>(chunk, count));
    }
    T* const data = static_cast<T*>(weight.data());
    const int64_t start = chunks_[chunk].start;
    const RowChange change = row_change(chunk);
    Tally tally;
    for (int first = 0; first < count; first += kNoiseBatch) {
      const int batch = std::min(kNoiseBatch, count - first);
      const Drawn drawn = draw(chunk, list + first, batch, rounds_by_words<T>(), room);
      for (int i = first; i < first + batch; ++i) {
        if (i + kAhead < count) {
          __builtin_prefetch(data + weight.offset(start + list[i + kAhead]), 1);
        }
        T* const at = data + weight.offset(start + list[i]);
        if (old != nullptr) old[i] = *at;
        const uint32_t word = drawn.words == nullptr ? 0 : drawn.words[i - first];
        const T value = update_element(*at, drawn.z[i - first], word, change, &tally);
        if (commit_) *at = value;
      }
    }
    outcomes_[chunk].tally.overflow += tally.overflow;
    outcomes_[chunk].tally.unchanged += tally.unchanged;
  }

  // Draws for places of a chunk, into the room; count <= kNoiseBatch.
  Drawn draw(int64_t chunk, const uint16_t* list, int count, bool rounding, WriteRoom* room) {
    if (change_.mode == UpdateMode::kZero) {
      std::fill(room->z, room->z + count, 0.0f);
      return {room->z, nullptr};
    }
    const Segment& segment = parameters_[chunks_[chunk].parameter].segment;
    const int64_t start = chunks_[chunk].start;
    for (int i = 0; i < count; ++i) {
      room->index[i] = static_cast<uint64_t>(segment.to_global(start + list[i]));
    }
    kernels_.words_at(room->index, count, change_.rng, kStreamNoise, room->words);
    kernels_.noise(change_.noise, room->words, count, room->z);
    if (!rounding) return {room->z, nullptr};
    kernels_.words_at(room->index, count, change_.rng, kStreamRounding, room->rounding);
    return {room->z, room->rounding};
  }

  const std::vector<Parameter>& parameters_;
  const Chunks& chunks_;
  const Choice& choice_;
  const Change& change_;
  const Execution& execution_;
  const Kernels& kernels_;
  const std::vector<std::unique_ptr<WriteRoom>>& rooms_;
  std::vector<Outcome> outcomes_;
  bool commit_ = false;
  const Journal* journal_ = nullptr;
};

// Whether no weight can overflow, told by the greatest magnitude of each parameter alone.
class Screen {
 public:
  Screen(const std::vector<Parameter>& parameters, const Chunks& chunks, const Change& change)
      : parameters_(as_scores(parameters)), chunks_(chunks), change_(change) {}

  bool passes(const Execution& execution) const {
    const KeyReader keys(parameters_, ScoreKind::kPlain, NanRule::kError, execution.kernels);
    std::vector<char> failed(execution.threads);
    chunks_.for_each(0, chunks_.size(), execution.threads, [&](int worker, int64_t number) {
      ChoiceRoom* const room = &thread_room<ChoiceRoom>();
      const Chunk& chunk = chunks_[number];
      const Scan scan = keys.scan_chunk(chunk, chunk.count, {kMagnitude, kMagnitude}, &room->buffer,
                                        room->bits, room->ties);
      if (scan.greatest >= limit(chunk.parameter)) failed[worker] = 1;
    });
    return std::find(failed.begin(), failed.end(), 1) == failed.end();
  }

 private:
  static std::vector<Parameter> as_scores(std::vector<Parameter> parameters) {
    for (Parameter& parameter : parameters) parameter.score = parameter.weight;
    return parameters;
  }

  // Half of the greatest finite value where the noise stays below the other half, else 0;
  // magnitudes below it cannot overflow.
  uint32_t limit(int parameter) const {
    constexpr double kMostNoise = 16;  // beyond every distribution of 32-bit words
    constexpr double kMaxHalf = 65504;
    const bool half = parameters_[parameter].weight.dtype() == DType::kFloat16;
    const double greatest = half ? kMaxHalf : 3.38e38;
    const double reach = kMostNoise * std::abs(change_.scale[parameter]);
    if (!(reach < greatest / 2)) return 0;  // a NaN too
    return ScalarLanes::bits(static_cast<float>(greatest / 2));
  }

  const std::vector<Parameter> parameters_;
  const Chunks& chunks_;
  const Change& change_;
};

bool journal_pays(const std::vector<Parameter>& parameters, const Chunks& chunks,
                  const Choice& choice) {
  int64_t bytes = 0;
  for (int64_t i = 0; i < chunks.size(); ++i) {
    bytes += journal_bytes(parameters, chunks[i], choice.at_most(i));
  }
  return bytes <= kJournalBytes + chunks.elements(0, chunks.size()) / 8;
}

// Writes all of it or nothing. A few elements are written with a journal to undo it by; many are
// written only after their weights have been found small enough, or after a run without writing.
void write_all_or_nothing(const std::vector<Parameter>& parameters, const Chunks& chunks,
                          const Choice& choice, const Change& change, const Execution& execution,
                          Writer* writer) {
  if (change.allow_overflow || change.mode == UpdateMode::kZero) return writer->run(true, nullptr);
  if (journal_pays(parameters, chunks, choice)) {
    const Journal journal(parameters, chunks, choice);
    writer->run(true, &journal);
    if (writer->overflow() != 0) writer->undo(journal);
    return;
  }
  if (!Screen(parameters, chunks, change).passes(execution)) {
    writer->run(false, nullptr);
    if (writer->overflow() != 0) return;
  }
  writer->run(true, nullptr);
}

}  // namespace

void perturb(const std::vector<Parameter>& parameters, const Chunks& chunks, const Choice& choice,
             const Change& change, const Execution& execution, int64_t* stats) {
  Writer writer(parameters, chunks, choice, change, execution);
  write_all_or_nothing(parameters, chunks, choice, change, execution, &writer);
  for (int64_t i = 0; i < chunks.size(); ++i) {
    int64_t* const row = stats + chunks[i].parameter * kStatColumns;
    const Outcome& outcome = writer.outcomes()[i];
    row[kStatSelected] += outcome.selected;
    row[kStatOverflow] += outcome.tally.overflow;
    row[kStatUnchanged] += outcome.tally.unchanged;
  }
}

void noise_at(const uint64_t* index, int64_t count, const Rng& rng, NoiseKind kind,
              const Execution& execution, float* z) {
  const int64_t batches = (count + kNoiseBatch - 1) / kNoiseBatch;
  const int threads = useful_threads(count, execution.threads);
  parallel_for(threads, batches, [&](int, int64_t batch) {
    const int64_t first = batch * kNoiseBatch;
    const int size = static_cast<int>(std::min<int64_t>(kNoiseBatch, count - first));
    uint32_t words[kNoiseBatch + 16];
    float out[kNoiseBatch + 16];
    execution.kernels->words_at(index + first, size, rng, kStreamNoise, words);
    execution.kernels->noise(kind, words, size, out);
    std::copy(out, out + size, z + first);
  });
}

}  // namespace fastunlearn
