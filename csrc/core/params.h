// Names that the operations' schemas, the kernels and the statistics share.
#ifndef FASTUNLEARN_CORE_PARAMS_H_
#define FASTUNLEARN_CORE_PARAMS_H_

#include <cstdint>

namespace fastunlearn {

enum class DType { kFloat32, kFloat64, kBFloat16, kFloat16 };

enum class NoiseKind { kNormal, kUniform, kLaplace };

// What becomes of a selected weight: w + scale * z, scale * z, or 0.
enum class UpdateMode { kAdd, kReplace, kZero };

// How a new value becomes one of a 16-bit type; the others round to nearest.
enum class Rounding { kNearest, kStochastic };

// Columns of the statistics, int64, one row for each tensor (`fastunlearn.reference.ops.Stat`).
enum Stat {
  kStatSelected,
  kStatThreshold,
  kStatTies,
  kStatTiesTaken,
  kStatNan,
  kStatOverflow,
  kStatUnchanged,
  kStatColumns,
};

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CORE_PARAMS_H_
