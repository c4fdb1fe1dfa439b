// The state of a Top-K on the device, from the table to the bitmap of what is selected.
#ifndef FASTUNLEARN_CUDA_SELECTION_H_
#define FASTUNLEARN_CUDA_SELECTION_H_

#include <cstdint>

#include "core/keys.h"
#include "core/permutation.h"
#include "cuda/table.h"

namespace fastunlearn::cuda {

inline constexpr int kKeyBits = 31;

// Two keys around the threshold: a key above `hi` is surely selected, one from `lo` to `hi` is a
// candidate. With lo > hi there is none.
struct Bracket {
  uint32_t lo, hi;
};

// The keys among which a rank is looked for: from `low` on and below `end`, the rank-th greatest of
// them. Histograms of at most 2^bin_bits bins narrow it down.
struct Range {
  uint32_t low, end;
  int32_t bin_bits;
  int32_t shift;  // a bin holds 2^shift keys
  unsigned long long rank;

  static FASTUNLEARN_HD Range of(uint32_t low, uint32_t end, int bin_bits,
                                 unsigned long long rank) {
    const int bits = bit_length(end - low - 1);
    return {low, end, bin_bits, bits > bin_bits ? bits - bin_bits : 0, rank};
  }

  FASTUNLEARN_HD bool has(uint32_t key) const { return key - low < end - low; }
  FASTUNLEARN_HD uint32_t bin_of(uint32_t key) const { return (key - low) >> shift; }
  FASTUNLEARN_HD bool single() const { return end - low == 1; }

  // Goes on in one bin, `above` keys of the range being greater than those in it.
  FASTUNLEARN_HD void narrow(uint32_t bin, unsigned long long above) {
    rank -= above;
    low += bin << shift;
    const uint32_t left = end - low, width = 1u << shift;
    end = low + (left < width ? left : width);
    shift = shift > bin_bits ? shift - bin_bits : 0;
  }
};

// Where the threshold is still to be looked for.
enum class Search { kFound, kAmongCandidates, kAmongAll };

// One selection: of the whole call, or of one tensor.
struct Problem {
  int64_t k, numel;
  int64_t first_tile, last_tile;
  int64_t first_sample, samples;

  Bracket bracket;
  // Keys above the bracket, at its upper end, between its ends, and at its lower end where that is
  // another.
  unsigned long long above, at_hi, inside, at_lo;

  Search search;
  Range range;

  // The cut: keys above `key` are selected, and its ties in tiles before tie_tile and at places
  // below tie_end of that tile.
  uint32_t key;
  int32_t tie_end;
  int64_t tie_tile;
  int64_t ties, ties_taken;
  bool settled_by_candidates;  // the candidates are all there, so that nothing is read again
};

// The candidates of one tile: so many, from `begin` on.
struct Run {
  uint32_t begin, count;
};

// All that the kernels of a Top-K work on; pointers to device memory.
struct Selection {
  Table table;
  Problem* problems;  // shape (num_problems,)
  int num_problems;
  bool per_tensor;  // one problem for each tensor, else a single one
  int64_t k;        // of the single one
  int64_t elements;
  ScoreKind score;
  NanRule nan;

  uint32_t* sample;  // shape (num_samples,): keys
  int64_t num_samples;
  uint32_t* bits;             // shape (tiles, kTileWords)
  Run* runs;                  // shape (tiles,)
  uint32_t* candidate_key;    // shape (capacity,)
  uint16_t* candidate_place;  // shape (capacity,): place in the tile
  int64_t capacity;
  int bin_bits;
  unsigned long long* histogram;  // shape (num_problems, 2^bin_bits)
  uint32_t* tile_ties;            // shape (tiles,): elements of the threshold's key
  int64_t* stats;                 // shape (count, kStatColumns)

  // Histograms that narrow any range down to one key.
  int levels() const { return (kKeyBits + bin_bits - 1) / bin_bits; }
  FASTUNLEARN_HD int64_t bins() const { return int64_t{1} << bin_bits; }
  __device__ int problem_of(int tensor) const { return per_tensor ? tensor : 0; }
};

// The stages, in the order in which they run; each is one or a few launches.
cudaError_t find_brackets(const Selection& selection, const Device& device);
cudaError_t stream(const Selection& selection, const Device& device);
cudaError_t find_cuts(const Selection& selection, const Device& device);
cudaError_t settle(const Selection& selection, const Device& device);

// Calls body(problem number, first tile, last tile) for the pieces of a block's share of all tiles
// that belong to one problem each. All threads of a block go through the same pieces.
template <class Body>
__device__ void for_each_piece(const Selection& selection, const Body& body) {
  const Table& table = selection.table;
  int64_t first = table.tiles * blockIdx.x / gridDim.x;
  const int64_t last = table.tiles * (blockIdx.x + 1) / gridDim.x;
  while (first < last) {
    const int problem = selection.problem_of(tensor_of(table, first));
    const int64_t end = selection.problems[problem].last_tile;
    const int64_t stop = end < last ? end : last;
    body(problem, first, stop);
    first = stop;
  }
}

}  // namespace fastunlearn::cuda

#endif  // FASTUNLEARN_CUDA_SELECTION_H_
