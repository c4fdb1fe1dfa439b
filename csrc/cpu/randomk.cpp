#include "cpu/randomk.h"

#include <algorithm>

#include "cpu/scatter.h"
#include "cpu/topk.h"

namespace fastunlearn {
namespace {

std::vector<Domain> domains_of(const RandomK& randomk) {
  std::vector<Domain> domains;
  const auto add = [&](int64_t base, int64_t size, int64_t k, size_t begin, size_t end) {
    if (k == 0) return;
    const auto permutation =
        Permutation::make(static_cast<uint64_t>(size), randomk.rng, static_cast<uint64_t>(base));
    domains.push_back({base, size, k, permutation, begin, end});
  };
  if (!randomk.per_tensor) {
    add(0, randomk.total, randomk.k[0], 0, randomk.parameters.size());
    return domains;
  }
  for (size_t i = 0; i < randomk.parameters.size(); ++i) {
    const Segment& segment = randomk.parameters[i].segment;
    add(segment.base, segment.numel, randomk.k[i], i, i + 1);
  }
  return domains;
}

// One bit for each index of the domains, set for the selected: the streaming form, for large K.
class SubsetChoice : public Choice {
 public:
  SubsetChoice(const RandomK& randomk, const std::vector<Domain>& domains, const Chunks& chunks,
               const Execution& execution)
      : parameters_(randomk.parameters),
        chunks_(chunks),
        kernels_(*execution.kernels),
        home_(parameters_.size(), kNowhere) {
    int64_t words = 0;
    for (const Domain& domain : domains) {
      for (size_t i = domain.begin; i < domain.end; ++i) {
        home_[i] = 64 * words - domain.base;
      }
      words += (domain.size + 63) / 64 + 1;  // one more, so that a shifted read stays inside
    }
    bits_.resize(words);
    words = 0;
    for (const Domain& domain : domains) {
      fill(domain, bits_.data() + words, execution);
      words += (domain.size + 63) / 64 + 1;
    }
    counts_.resize(chunks.size());
    chunks.for_each(0, chunks.size(), execution.threads, [this](int, int64_t chunk) {
      counts_[chunk] = choose(chunk, &thread_room<ChoiceRoom>()).count;
    });
  }

  Chosen choose(int64_t number, ChoiceRoom* room) const override {
    const Chunk& chunk = chunks_[number];
    const Segment& segment = parameters_[chunk.parameter].segment;
    const int words = (chunk.count + 63) / 64;
    if (home_[chunk.parameter] == kNowhere) return {};
    if (segment.one_row()) {
      copy_bits(home_[chunk.parameter] + segment.to_global(chunk.start), words, room->bits);
    } else {
      std::fill(room->bits, room->bits + words, 0);
      for (int i = 0; i < chunk.count; ++i) {
        const int64_t at = home_[chunk.parameter] + segment.to_global(chunk.start + i);
        room->bits[i / 64] |= (bits_[at / 64] >> at % 64 & 1) << i % 64;
      }
    }
    if (chunk.count % 64 != 0) room->bits[words - 1] &= (uint64_t{1} << chunk.count % 64) - 1;
    return {kernels_.count(room->bits, words), nullptr, room->bits};
  }

  int64_t at_most(int64_t chunk) const override { return counts_[chunk]; }

 private:
  // Sets the bits of perm(0..k-1); above half, clears those of the others.
  static void fill(const Domain& domain, uint64_t* bits, const Execution& execution) {
    const bool few = domain.k <= domain.size / 2;
    const int64_t first = few ? 0 : domain.k;
    const int64_t count = few ? domain.k : domain.size - domain.k;
    if (!few) std::fill(bits, bits + (domain.size + 63) / 64, ~uint64_t{0});
    const int threads = useful_threads(count, execution.threads);
    parallel_for(threads, (count + kImages - 1) / kImages, [&](int, int64_t task) {
      uint64_t image[kImages];
      const int64_t start = task * kImages;
      const int size = static_cast<int>(std::min<int64_t>(kImages, count - start));
      execution.kernels->permute(domain.permutation, first + start, size, image);
      for (int i = 0; i < size; ++i) {
        const uint64_t bit = uint64_t{1} << image[i] % 64;
        uint64_t* const word = bits + image[i] / 64;
        if (threads == 1) {
          *word ^= bit;
        } else {
          __atomic_fetch_xor(word, bit, __ATOMIC_RELAXED);
        }
      }
    });
  }

  // Words from bit `at` on.
  void copy_bits(int64_t at, int words, uint64_t* out) const {
    const uint64_t* const from = bits_.data() + at / 64;
    const int shift = static_cast<int>(at % 64);
    if (shift == 0) {
      std::copy(from, from + words, out);
      return;
    }
    for (int i = 0; i < words; ++i) out[i] = from[i] >> shift | from[i + 1] << (64 - shift);
  }

  const std::vector<Parameter>& parameters_;
  const Chunks& chunks_;
  const Kernels& kernels_;
  static constexpr int64_t kNowhere = INT64_MIN;
  std::vector<int64_t> home_;  // bit of flat index 0 for each parameter, or kNowhere
  std::vector<uint64_t> bits_;
  std::vector<int> counts_;
};

// Asks of each element whether its preimage is below k: for a share of the index space that has
// fewer elements than the whole has selected ones.
class PreimageChoice : public Choice {
 public:
  PreimageChoice(const std::vector<Parameter>& parameters, const Domain& domain,
                 const Chunks& chunks, const Kernels& kernels)
      : parameters_(parameters), domain_(domain), chunks_(chunks), kernels_(kernels) {}

  Chosen choose(int64_t number, ChoiceRoom* room) const override {
    const Chunk& chunk = chunks_[number];
    const Segment& segment = parameters_[chunk.parameter].segment;
    const int words = (chunk.count + 63) / 64;
    std::fill(room->bits, room->bits + words, 0);
    uint64_t before[kImages];
    for (int place = 0; place < chunk.count;) {
      const int64_t local = chunk.start + place;
      const int64_t row = segment.row_len - local % segment.row_len;  // elements to its end
      const int count =
          static_cast<int>(std::min<int64_t>({row, chunk.count - place, int64_t{kImages}}));
      kernels_.unpermute(domain_.permutation, static_cast<uint64_t>(segment.to_global(local)),
                         count, before);
      for (int i = 0; i < count; ++i) {
        const uint64_t bit = before[i] < static_cast<uint64_t>(domain_.k);
        room->bits[(place + i) / 64] |= bit << (place + i) % 64;
      }
      place += count;
    }
    return {kernels_.count(room->bits, words), nullptr, room->bits};
  }

  int64_t at_most(int64_t chunk) const override { return chunks_[chunk].count; }

 private:
  const std::vector<Parameter>& parameters_;
  const Domain& domain_;
  const Chunks& chunks_;
  const Kernels& kernels_;
};

int64_t elements_here(const RandomK& randomk) {
  int64_t here = 0;
  for (const Parameter& parameter : randomk.parameters) here += parameter.weight.numel();
  return here;
}

bool preimages_pay(const RandomK& randomk) {
  if (randomk.per_tensor || randomk.k[0] == 0) return false;
  return elements_here(randomk) <= std::min(randomk.k[0], randomk.total - randomk.k[0]);
}

// Whether one bit for each index costs less than going to each selected element by itself: where
// many are selected, and most of the index space is here. A shard under the scope of one tensor is
// left to the other form.
bool streaming_pays(const RandomK& randomk) {
  const int64_t here = elements_here(randomk);
  int64_t selected = 0;
  for (const Parameter& parameter : randomk.parameters) {
    if (randomk.per_tensor && !parameter.segment.one_row()) return false;
  }
  for (const int64_t k : randomk.k) selected += k;
  const int64_t all = randomk.per_tensor ? here : randomk.total;
  return selected >= all / kStreamingShare && all / 4 <= here;
}

}  // namespace

void randomk_perturb(const RandomK& randomk, const Change& change, const Execution& execution,
                     int64_t* stats) {
  start_stats(randomk.parameters.size(), stats);
  const std::vector<Domain> domains = domains_of(randomk);
  if (preimages_pay(randomk)) {
    const Chunks chunks(randomk.parameters);
    const PreimageChoice asked(randomk.parameters, domains[0], chunks, *execution.kernels);
    const BitChoice choice(asked, chunks, execution.threads);
    perturb(randomk.parameters, chunks, choice, change, execution, stats);
    return;
  }
  if (!streaming_pays(randomk)) {
    scatter(randomk.parameters, domains, change, execution, stats);
    return;
  }
  const Chunks chunks(randomk.parameters);
  const SubsetChoice choice(randomk, domains, chunks, execution);
  perturb(randomk.parameters, chunks, choice, change, execution, stats);
}

void randomk_select(const RandomK& randomk, const Execution& execution,
                    const std::vector<uint8_t*>& packed, int64_t* stats) {
  start_stats(randomk.parameters.size(), stats);
  const std::vector<Domain> domains = domains_of(randomk);
  if (preimages_pay(randomk)) {
    const Chunks chunks(randomk.parameters);
    const PreimageChoice choice(randomk.parameters, domains[0], chunks, *execution.kernels);
    pack(chunks, choice, execution, packed, stats);
    return;
  }
  if (!streaming_pays(randomk)) {
    scatter_bits(randomk.parameters, domains, execution, packed, stats);
    return;
  }
  const Chunks chunks(randomk.parameters);
  const SubsetChoice choice(randomk, domains, chunks, execution);
  pack(chunks, choice, execution, packed, stats);
}

}  // namespace fastunlearn
