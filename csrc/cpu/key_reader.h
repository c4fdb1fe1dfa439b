// Keys of the parameters, block by block.
#ifndef FASTUNLEARN_CPU_KEY_READER_H_
#define FASTUNLEARN_CPU_KEY_READER_H_

#include <cstdint>
#include <vector>

#include "core/keys.h"
#include "cpu/parameters.h"
#include "cpu/room.h"

namespace fastunlearn {

// Scores of one block in a form that the scan kernels take: the tensor's own memory where its keys
// follow from the bits alone, else fp32 values in a buffer.
struct ScoreBlock {
  DType dtype;
  const void* data;
  int count;

  uint32_t key(int i) const {
    switch (dtype) {
      case DType::kBFloat16:
        return to_key(to_float32(static_cast<const BFloat16*>(data)[i]));
      case DType::kFloat16:
        return to_key(to_float32(static_cast<const Float16*>(data)[i]));
      default:
        return to_key(static_cast<const float*>(data)[i]);
    }
  }

 private:
  static uint32_t to_key(float score) { return key_of(score, NanRule::kError); }
};

// Room that one thread needs to read a block.
struct BlockBuffer {
  float score[kBlock];
  float weight[kBlock];
};

class KeyReader {
 public:
  KeyReader(const std::vector<Parameter>& parameters, ScoreKind kind, NanRule nan,
            const Kernels* kernels)
      : parameters_(parameters), kind_(kind), nan_(nan), kernels_(kernels) {}

  bool refuses_nan() const { return nan_ == NanRule::kError; }

  // Elements first .. first + count of a chunk, count <= kBlock. Valid as long as the buffer.
  ScoreBlock block(const Chunk& chunk, int first, int count, BlockBuffer* buffer) const;

  // Compares a block with a bracket; see Kernels::scan_f32.
  Scan scan(const ScoreBlock& block, Bracket bracket, uint64_t* sure, uint64_t* maybe) const;

  // Brings the score of an element nearer.
  void fetch(int parameter, int64_t local) const {
    const TensorView& score = parameters_[parameter].score;
    __builtin_prefetch(score.begin_bytes() + score.offset(local) * item_bytes(score.dtype()));
  }

  // Key of one element.
  uint32_t at(int parameter, int64_t local) const;

  // Scans elements 0 .. count of a chunk; sure, maybe: shape (ceil(count / 64),).
  Scan scan_chunk(const Chunk& chunk, int count, Bracket bracket, BlockBuffer* buffer,
                  uint64_t* sure, uint64_t* maybe) const;

 private:
  const std::vector<Parameter>& parameters_;
  ScoreKind kind_;
  NanRule nan_;
  const Kernels* kernels_;
};

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CPU_KEY_READER_H_
