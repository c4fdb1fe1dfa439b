// Which elements of a chunk are selected: the interface between a rule and what is done with it.
#ifndef FASTUNLEARN_CPU_CHOICE_H_
#define FASTUNLEARN_CPU_CHOICE_H_

#include <cstdint>
#include <vector>

#include "cpu/cut.h"
#include "cpu/key_reader.h"
#include "cpu/room.h"

namespace fastunlearn {

// Selected elements of one chunk, in the form that came first: places in any order, or one bit for
// each element. Valid until the room is used again.
struct Chosen {
  int count = 0;
  const uint16_t* list = nullptr;  // shape (count,), or null
  const uint64_t* bits = nullptr;  // shape (ceil(chunk.count / 64),), or null
};

// Room that one thread needs to choose.
struct ChoiceRoom {
  uint16_t list[kChunk + kExpandSlack];
  uint64_t bits[kChunk / 64];
  uint64_t ties[kChunk / 64];
  BlockBuffer buffer;
};

class Choice {
 public:
  virtual ~Choice() = default;
  virtual Chosen choose(int64_t chunk, ChoiceRoom* room) const = 0;
  // No fewer than are selected in a chunk, as long as nobody changes the scores; cheap.
  virtual int64_t at_most(int64_t chunk) const = 0;
};

// The choice that is one bit for each element, already made; a chunk begins at a word.
class BitChoice : public Choice {
 public:
  // Chooses everything in advance.
  BitChoice(const Choice& choice, const Chunks& chunks, int threads);

  Chosen choose(int64_t chunk, ChoiceRoom* room) const override;
  int64_t at_most(int64_t chunk) const override { return counts_[chunk]; }

 private:
  std::vector<uint64_t> bits_;
  std::vector<int64_t> firsts_;
  std::vector<int> counts_;
};

// The choice that cuts make, one for each chunk's problem.
class CutChoice : public Choice {
 public:
  CutChoice(const KeyReader& keys, const std::vector<Parameter>& parameters, const Chunks& chunks,
            const Records& records, const Kernels& kernels)
      : keys_(keys),
        parameters_(parameters),
        chunks_(chunks),
        records_(records),
        kernels_(kernels),
        rules_(parameters.size()) {}

  // Sets the cut of a parameter, and the bracket that its records were made with.
  void set(size_t parameter, const Cut& cut, Bracket bracket);

  Chosen choose(int64_t chunk, ChoiceRoom* room) const override;
  int64_t at_most(int64_t chunk) const override;

 private:
  struct Rule {
    Cut cut;
    Bracket bracket;
    int64_t tie_end = 0;  // ties are taken up to this local number
  };

  const Rule& rule(int64_t chunk) const { return rules_[chunks_[chunk].parameter]; }
  // Elements of the chunk, from its first, whose ties are taken.
  int tie_end(int64_t chunk) const;
  int64_t candidates(int64_t chunk) const;
  Chosen from_record(int64_t chunk, ChoiceRoom* room) const;
  Chosen read_again(int64_t chunk, ChoiceRoom* room) const;

  const KeyReader& keys_;
  const std::vector<Parameter>& parameters_;
  const Chunks& chunks_;
  const Records& records_;
  const Kernels& kernels_;
  std::vector<Rule> rules_;
};

// Bits of a chosen set, in the room where it has none yet.
const uint64_t* as_bits(const Chosen& chosen, int count, ChoiceRoom* room);
// Places of a chosen set, in the room where it has none yet.
const uint16_t* as_list(const Chosen& chosen, int count, const Kernels& kernels, ChoiceRoom* room);

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CPU_CHOICE_H_
