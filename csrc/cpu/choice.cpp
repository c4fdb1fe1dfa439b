#include "cpu/choice.h"

#include <algorithm>
#include <cstring>

namespace fastunlearn {
namespace {

int num_words(int count) { return (count + 63) / 64; }

void set_bit(uint64_t* bits, int place) { bits[place / 64] |= uint64_t{1} << place % 64; }

// Clears the bits from `end` on.
void clear_from(uint64_t* bits, int end, int words) {
  if (end >= 64 * words) return;
  bits[end / 64] &= (uint64_t{1} << end % 64) - 1;
  std::fill(bits + end / 64 + 1, bits + words, 0);
}

}  // namespace

void CutChoice::set(size_t parameter, const Cut& cut, Bracket bracket) {
  const int64_t end = cut.last_tie == kEveryTie
                          ? kEveryTie
                          : parameters_[parameter].segment.count_below(cut.last_tie + 1);
  rules_[parameter] = {cut, bracket, end};
}

int CutChoice::tie_end(int64_t chunk) const {
  const Chunk& found = chunks_[chunk];
  const int64_t end = rule(chunk).tie_end;
  return end <= found.start ? 0
                            : static_cast<int>(std::min<int64_t>(found.count, end - found.start));
}

// Elements inside the bracket that may be selected, without their ties where none of these is
// taken.
int64_t CutChoice::candidates(int64_t chunk) const {
  const ChunkRecord& record = records_[chunk];
  const Rule& found = rule(chunk);
  if (tie_end(chunk) > 0) return record.maybe;
  if (found.cut.key == found.bracket.hi) return 0;
  return record.maybe - (found.cut.key == found.bracket.lo ? record.at_lo : 0);
}

int64_t CutChoice::at_most(int64_t chunk) const {
  if (!rule(chunk).cut.recorded) return chunks_[chunk].count;
  return std::clamp<int64_t>(records_[chunk].sure + candidates(chunk), 0, chunks_[chunk].count);
}

Chosen CutChoice::choose(int64_t chunk, ChoiceRoom* room) const {
  const bool told = rule(chunk).cut.recorded && (records_[chunk].listed || candidates(chunk) == 0);
  return told ? from_record(chunk, room) : read_again(chunk, room);
}

Chosen CutChoice::from_record(int64_t chunk, ChoiceRoom* room) const {
  const ChunkRecord& record = records_[chunk];
  const uint32_t key = rule(chunk).cut.key;
  const int tie_places = tie_end(chunk);
  const bool listed = record.sure_bits == nullptr;
  Chosen chosen{record.sure, record.sure_list, record.sure_bits};
  if (!record.listed || record.num_keys == 0) return chosen;
  if (listed) {
    std::copy(record.sure_list, record.sure_list + record.sure, room->list);
    chosen.list = room->list;
  } else {
    std::memcpy(room->bits, record.sure_bits, num_words(chunks_[chunk].count) * sizeof(uint64_t));
    chosen.bits = room->bits;
  }
  for (int i = 0; i < record.num_keys; ++i) {
    const int place = record.maybe_place[i];
    const bool taken =
        record.maybe_key[i] > key || (record.maybe_key[i] == key && place < tie_places);
    if (listed) {
      room->list[chosen.count] = static_cast<uint16_t>(place);
    } else if (taken) {
      set_bit(room->bits, place);
    }
    chosen.count += taken;
  }
  return chosen;
}

Chosen CutChoice::read_again(int64_t chunk, ChoiceRoom* room) const {
  const Chunk& found = chunks_[chunk];
  const uint32_t key = rule(chunk).cut.key;
  const int words = num_words(found.count);
  const Scan scan =
      keys_.scan_chunk(found, found.count, {key, key}, &room->buffer, room->bits, room->ties);
  Chosen chosen{scan.sure, nullptr, room->bits};
  const int end = tie_end(chunk);
  if (end == 0 || scan.maybe == 0) return chosen;
  clear_from(room->ties, end, words);
  for (int i = 0; i < words; ++i) room->bits[i] |= room->ties[i];
  chosen.count = kernels_.count(room->bits, words);
  return chosen;
}

BitChoice::BitChoice(const Choice& choice, const Chunks& chunks, int threads)
    : firsts_(chunks.size() + 1), counts_(chunks.size()) {
  for (int64_t i = 0; i < chunks.size(); ++i) {
    firsts_[i + 1] = firsts_[i] + num_words(chunks[i].count);
  }
  bits_.resize(firsts_.back());
  chunks.for_each(0, chunks.size(), threads, [&](int, int64_t chunk) {
    ChoiceRoom* const room = &thread_room<ChoiceRoom>();
    const Chosen chosen = choice.choose(chunk, room);
    const uint64_t* const bits = as_bits(chosen, chunks[chunk].count, room);
    std::copy(bits, bits + num_words(chunks[chunk].count), bits_.data() + firsts_[chunk]);
    counts_[chunk] = chosen.count;
  });
}

Chosen BitChoice::choose(int64_t chunk, ChoiceRoom*) const {
  return {counts_[chunk], nullptr, bits_.data() + firsts_[chunk]};
}

const uint64_t* as_bits(const Chosen& chosen, int count, ChoiceRoom* room) {
  if (chosen.bits != nullptr) return chosen.bits;
  std::fill(room->bits, room->bits + num_words(count), 0);
  for (int i = 0; i < chosen.count; ++i) set_bit(room->bits, chosen.list[i]);
  return room->bits;
}

const uint16_t* as_list(const Chosen& chosen, int count, const Kernels& kernels, ChoiceRoom* room) {
  if (chosen.bits == nullptr) return chosen.list;
  kernels.expand(chosen.bits, num_words(count), 0, room->list);
  return room->list;
}

}  // namespace fastunlearn
