// Tuning constants of the CUDA code. Reasoned, not measured: nothing here has run on a GPU yet.
#ifndef FASTUNLEARN_CUDA_TUNING_H_
#define FASTUNLEARN_CUDA_TUNING_H_

#include <cstdint>

namespace fastunlearn::cuda {

// Threads of a block, in every kernel but those that say otherwise.
inline constexpr int kThreads = 256;
inline constexpr int kWarp = 32;
inline constexpr int kWarps = kThreads / kWarp;
// Elements of a tile, the unit of work of a block; places in it fit 16 bits.
inline constexpr int kTile = 4096;
inline constexpr int kTileWords = kTile / 32;
// Elements of a tile that one thread holds.
inline constexpr int kPerThread = kTile / kThreads;
// Blocks for each multiprocessor in a grid that walks all tiles.
inline constexpr int kBlocksPerMultiprocessor = 8;

// The bracket: keys sampled are kSampleScale p (1 - p), between these bounds and at most one in
// 2^kSampleShift elements.
inline constexpr double kSampleScale = 1 << 21;
inline constexpr int64_t kSampleLeast = 1 << 17;
inline constexpr int64_t kSampleLimit = 1 << 19;
inline constexpr int kSampleShift = 4;
// Problems of at most so many elements are not sampled: all of them are candidates.
inline constexpr int64_t kSmallProblem = 4096;
// With odds of exp(-kLogInverseMiss) on each side the bracket misses the threshold, and the exact
// search over all keys runs.
inline constexpr double kLogInverseMiss = 12;
// Room for candidates beyond the expected number, and for those that the coarse keys of 16-bit
// scores add: one in so many elements.
inline constexpr int64_t kCandidateLeast = 1 << 10;
inline constexpr int64_t kCoarseShare = 200;

// Bits of the key that one level of the search for a threshold tells apart, by a histogram: many
// where there is one problem, fewer where every tensor needs a histogram of its own.
inline constexpr int kBinBits = 11;
inline constexpr int kTensorBinBits = 8;

// One in so many elements of a tile selected: from there on the words of all are made.
inline constexpr int kDenseShare = 4;
// One in so many of all elements selected: from there on a tile is written by a block, below by a
// warp.
inline constexpr int64_t kManyShare = 8;
// Old values are kept to undo the writes where they take at most one byte for so many elements;
// beyond, weights are screened before the first write.
inline constexpr int64_t kJournalShare = 16;
inline constexpr int64_t kJournalLeast = 1 << 20;
// Random-k: with more than one in so many elements selected, a bitmap of all is made first.
inline constexpr int64_t kStreamingShare = 64;

}  // namespace fastunlearn::cuda

#endif  // FASTUNLEARN_CUDA_TUNING_H_
