// Tuning constants of the CPU code. Measured on a 2-core AMD EPYC (Zen 3, AVX2), November 2026;
// docs/performance.md has the figures.
#ifndef FASTUNLEARN_CPU_TUNING_H_
#define FASTUNLEARN_CPU_TUNING_H_

#include <cstddef>
#include <cstdint>

namespace fastunlearn {

// Elements of a chunk, the unit that threads draw and that places (16 bits) count in.
inline constexpr int kChunk = 1 << 16;
// Elements that are worth a second thread.
inline constexpr int64_t kGrain = 1 << 17;
// Selected elements that are.
inline constexpr int64_t kSelectedGrain = 1 << 12;

// The bracket: least and greatest number of keys sampled, and at most one in 2^kSampleShift
// elements.
inline constexpr int64_t kSampleLeast = 512;
inline constexpr int64_t kSampleLimit = 1 << 17;
inline constexpr int kSampleShift = 4;
// What it takes to draw a key, in terms of what it takes to keep one between the bounds.
inline constexpr double kDrawCost = 5;
// With odds of exp(-kLogInverseMiss) on each side the bracket misses the threshold, and the exact
// fallback runs.
inline constexpr double kLogInverseMiss = 12;

// Elements between the bounds that a chunk keeps, 6 bytes each; with more it is read again.
inline constexpr int kMaybeLimit = 2048;
// Surely selected elements that a chunk keeps as a list, 2 bytes each; with more, as a bitmap.
inline constexpr int kSureLimit = kChunk / 16;

// One in so many elements selected: from there on the words of all are made.
inline constexpr int kDenseShare = 5;
// Bytes of journal allowed on top of one bit for each element; beyond, weights are screened
// instead.
inline constexpr int64_t kJournalBytes = 1 << 20;
// Pages of 1 MiB that are kept from call to call.
inline constexpr size_t kKeptPages = 16;
// Spins (each a yield) of an idle worker before it sleeps.
inline constexpr int kSpins = 200;
// Selected weights between the one that is fetched and the one that is written.
inline constexpr int kAhead = 32;
// Random-k: one in so many elements selected, and a bitmap of all pays.
inline constexpr int64_t kStreamingShare = 256;

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CPU_TUNING_H_
