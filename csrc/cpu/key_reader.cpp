#include "cpu/key_reader.h"

#include <algorithm>

namespace fastunlearn {

ScoreBlock KeyReader::block(const Chunk& chunk, int first, int count, BlockBuffer* buffer) const {
  const Parameter& parameter = parameters_[chunk.parameter];
  const TensorView& score = parameter.score;
  const int64_t start = chunk.start + first;
  if (kind_ == ScoreKind::kPlain && nan_ == NanRule::kError && score.contiguous() &&
      score.dtype() != DType::kFloat64) {
    const char* data = score.begin_bytes() + start * item_bytes(score.dtype());
    return {score.dtype(), data, count};
  }
  float* const value = buffer->score;
  score.read(start, count, value);
  if (kind_ == ScoreKind::kProduct) parameter.weight.read(start, count, buffer->weight);
  if (kind_ != ScoreKind::kPlain) {
    const float* const factor = kind_ == ScoreKind::kProduct ? buffer->weight : value;
    for (int i = 0; i < count; ++i) value[i] = factor[i] * value[i];
  }
  if (nan_ != NanRule::kError) {
    for (int i = 0; i < count; ++i) value[i] = ScalarLanes::from_bits(key_of(value[i], nan_));
  }
  return {DType::kFloat32, value, count};
}

Scan KeyReader::scan(const ScoreBlock& block, Bracket bracket, uint64_t* sure,
                     uint64_t* maybe) const {
  switch (block.dtype) {
    case DType::kBFloat16:
      return kernels_->scan_bf16(static_cast<const BFloat16*>(block.data), block.count, bracket,
                                 sure, maybe);
    case DType::kFloat16:
      return kernels_->scan_f16(static_cast<const Float16*>(block.data), block.count, bracket, sure,
                                maybe);
    default:
      return kernels_->scan_f32(static_cast<const float*>(block.data), block.count, bracket, sure,
                                maybe);
  }
}

uint32_t KeyReader::at(int parameter, int64_t local) const {
  const Parameter& found = parameters_[parameter];
  const float score = found.score.at(local);
  const float weight = kind_ == ScoreKind::kProduct ? found.weight.at(local) : 0.0f;
  return key_of(score_of(kind_, weight, score), nan_);
}

Scan KeyReader::scan_chunk(const Chunk& chunk, int count, Bracket bracket, BlockBuffer* buffer,
                           uint64_t* sure, uint64_t* maybe) const {
  Scan all{0, 0, 0};
  for (int first = 0; first < count; first += kBlock) {
    const ScoreBlock found = block(chunk, first, std::min(kBlock, count - first), buffer);
    const Scan part = scan(found, bracket, sure + first / 64, maybe + first / 64);
    all.greatest = std::max(all.greatest, part.greatest);
    all.sure += part.sure;
    all.maybe += part.maybe;
  }
  return all;
}

}  // namespace fastunlearn
