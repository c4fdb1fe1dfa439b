#include "cpu/scatter.h"

#include <algorithm>
#include <atomic>
#include <memory>

namespace fastunlearn {
namespace {

constexpr int kBatch = 128;  // elements whose noise is made while the next are fetched

// Images of one task, with the elements they belong to.
struct Images {
  int count;
  uint64_t index[kImages];
  Place place[kImages];
};

// Counts of one thread, for each parameter.
struct Counts {
  int64_t selected = 0;
  Tally tally;
};

int64_t tasks_of(const Domain& domain) { return (domain.k + kImages - 1) / kImages; }

class Scatter {
 public:
  Scatter(const std::vector<Parameter>& parameters, const std::vector<Domain>& domains,
          const Execution& execution)
      : parameters_(parameters),
        domains_(domains),
        kernels_(*execution.kernels),
        locator_(parameters) {
    int64_t k = 0;
    for (const Domain& domain : domains) {
      firsts_.push_back(firsts_.back() + tasks_of(domain));
      k += domain.k;
    }
    threads_ = useful_threads(k, execution.threads);
    counts_.assign(threads_, std::vector<Counts>(parameters.size()));
  }

  // Calls body(worker, images) for all tasks. The domains share one loop: threads may have to be
  // started for it, and can fail to, only while nothing is written.
  template <class Body>
  void for_each_task(const Body& body) {
    parallel_for(threads_, firsts_.back(), [&](int worker, int64_t task) {
      const auto after = std::upper_bound(firsts_.begin(), firsts_.end(), task);
      const int64_t domain = after - firsts_.begin() - 1;
      Images images;
      find_images(domains_[domain], (task - firsts_[domain]) * kImages, &images);
      body(worker, images);
    });
  }

  Counts* counts(int worker) { return counts_[worker].data(); }

  void add_to(int64_t* stats) const {
    for (const auto& own : counts_) {
      for (size_t i = 0; i < own.size(); ++i) {
        stats[i * kStatColumns + kStatSelected] += own[i].selected;
        stats[i * kStatColumns + kStatOverflow] += own[i].tally.overflow;
        stats[i * kStatColumns + kStatUnchanged] += own[i].tally.unchanged;
      }
    }
  }

 protected:
  void find_images(const Domain& domain, int64_t first, Images* images) const {
    images->count = static_cast<int>(std::min<int64_t>(kImages, domain.k - first));
    kernels_.permute(domain.permutation, static_cast<uint64_t>(first), images->count,
                     images->index);
    for (int i = 0; i < images->count; ++i) {
      images->index[i] += static_cast<uint64_t>(domain.base);
      images->place[i] = locator_.find(static_cast<int64_t>(images->index[i]));
    }
  }

  const std::vector<Parameter>& parameters_;
  const std::vector<Domain>& domains_;
  const Kernels& kernels_;
  const Locator locator_;
  std::vector<int64_t> firsts_{0};  // first task of each domain; one entry more than domains
  int threads_;
  std::vector<std::vector<Counts>> counts_;  // of each worker
};

// A weight as it was.
struct Before {
  Place place;
  uint64_t bits;
};

class ScatterWriter : public Scatter {
 public:
  ScatterWriter(const std::vector<Parameter>& parameters, const std::vector<Domain>& domains,
                const Change& change, const Execution& execution)
      : Scatter(parameters, domains, execution), change_(change) {
    for (const Parameter& parameter : parameters) {
      const DType dtype = parameter.weight.dtype();
      if (std::find(dtypes_.begin(), dtypes_.end(), dtype) == dtypes_.end()) {
        dtypes_.push_back(dtype);
        dispatch(dtype, [&](auto* type) {
          using T = std::remove_pointer_t<decltype(type)>;
          rounds_by_words_ |= rounds_by_words<T>(change.mode, change.rounding);
        });
      }
    }
  }

  void run() {
    const bool may_overflow = !change_.allow_overflow && change_.mode != UpdateMode::kZero;
    if (may_overflow) journal_.reset(new Before[most_here()]);
    for_each_task([this](int worker, const Images& images) { write(worker, images); });
    if (may_overflow && overflow() != 0) undo();
  }

 private:
  // No fewer than the selected elements that are here: k counts those of other shards too.
  int64_t most_here() const {
    int64_t most = 0;
    for (const Domain& domain : domains_) {
      int64_t here = 0;
      for (size_t i = domain.begin; i < domain.end; ++i) here += parameters_[i].weight.numel();
      most += std::min(domain.k, here);
    }
    return most;
  }

  // Room in the journal for those of the images that are here, or null.
  Before* journal_for(const Images& images) {
    if (!journal_) return nullptr;
    const auto here = [](const Place& place) { return place.parameter >= 0; };
    const auto count = std::count_if(images.place, images.place + images.count, here);
    return journal_.get() + written_.fetch_add(count, std::memory_order_relaxed);
  }

  int64_t overflow() const {
    int64_t total = 0;
    for (const auto& own : counts_) {
      for (const Counts& counts : own) total += counts.tally.overflow;
    }
    return total;
  }

  void write(int worker, const Images& images) {
    Counts* const counts = this->counts(worker);
    Before* journal = journal_for(images);
    float z[kBatch + 16] = {};
    uint32_t rounding[kBatch] = {};
    fetch(images, 0);
    for (int first = 0; first < images.count; first += kBatch) {
      const int count = std::min(kBatch, images.count - first);
      fetch(images, first + kBatch);
      if (change_.mode != UpdateMode::kZero) {
        uint32_t words[kBatch + 16];
        kernels_.words_at(images.index + first, count, change_.rng, kStreamNoise, words);
        kernels_.noise(change_.noise, words, count, z);
      }
      if (rounds_by_words_) {
        kernels_.words_at(images.index + first, count, change_.rng, kStreamRounding, rounding);
      }
      for (const DType dtype : dtypes_) {
        dispatch(dtype, [&](auto* type) {
          using T = std::remove_pointer_t<decltype(type)>;
          journal = write_some<T>(images, first, count, dtype, {z, rounding}, counts, journal);
        });
      }
    }
  }

  // Those of the elements whose weights have the type T. Returns the end of the journal.
  template <class T>
  Before* write_some(const Images& images, int first, int count, DType dtype, Drawn drawn,
                     Counts* counts, Before* journal) {
    for (int i = 0; i < count; ++i) {
      const Place place = images.place[first + i];
      if (place.parameter < 0) continue;
      const TensorView& weight = parameters_[place.parameter].weight;
      if (weight.dtype() != dtype) continue;
      T* const at = static_cast<T*>(weight.data()) + weight.offset(place.local);
      if (journal != nullptr) {
        journal->place = place;
        std::memcpy(&journal->bits, at, sizeof(T));
        ++journal;
      }
      Counts& own = counts[place.parameter];
      const RowChange change = {change_.scale[place.parameter], change_.mode, change_.rounding};
      *at = update_element(*at, drawn.z[i], drawn.words[i], change, &own.tally);
      ++own.selected;
    }
    return journal;
  }

  void undo() {
    const int64_t tasks = (written_ + kImages - 1) / kImages;
    parallel_for(threads_, tasks, [this](int, int64_t task) {
      const int64_t end = std::min<int64_t>(written_, (task + 1) * kImages);
      for (int64_t i = task * kImages; i < end; ++i) {
        const auto& [place, bits] = journal_[i];
        const TensorView& weight = parameters_[place.parameter].weight;
        const int64_t item = item_bytes(weight.dtype());
        std::memcpy(static_cast<char*>(weight.data()) + weight.offset(place.local) * item, &bits,
                    item);
      }
    });
  }

  void fetch(const Images& images, int first) const {
    const int stop = std::min(first + kBatch, images.count);
    for (int i = first; i < stop; ++i) {
      const Place place = images.place[i];
      if (place.parameter < 0) continue;
      const TensorView& weight = parameters_[place.parameter].weight;
      const int64_t offset = weight.offset(place.local) * item_bytes(weight.dtype());
      __builtin_prefetch(static_cast<char*>(weight.data()) + offset, 1);
    }
  }

  const Change& change_;
  std::vector<DType> dtypes_;
  bool rounds_by_words_ = false;
  std::unique_ptr<Before[]> journal_;  // to undo what was written; in any order
  std::atomic<int64_t> written_{0};    // entries of the journal
};

}  // namespace

void start_stats(size_t parameters, int64_t* stats) {
  std::fill(stats, stats + parameters * kStatColumns, 0);
  for (size_t i = 0; i < parameters; ++i) stats[i * kStatColumns + kStatThreshold] = -1;
}

void scatter(const std::vector<Parameter>& parameters, const std::vector<Domain>& domains,
             const Change& change, const Execution& execution, int64_t* stats) {
  ScatterWriter writer(parameters, domains, change, execution);
  writer.run();
  writer.add_to(stats);
}

void scatter_bits(const std::vector<Parameter>& parameters, const std::vector<Domain>& domains,
                  const Execution& execution, const std::vector<uint8_t*>& packed, int64_t* stats) {
  for (size_t i = 0; i < parameters.size(); ++i) {
    std::fill(packed[i], packed[i] + (parameters[i].weight.numel() + 7) / 8, 0);
  }
  Scatter scatter(parameters, domains, execution);
  scatter.for_each_task([&](int worker, const Images& images) {
    for (int i = 0; i < images.count; ++i) {
      const Place place = images.place[i];
      if (place.parameter < 0) continue;
      const auto bit = static_cast<uint8_t>(1 << place.local % 8);
      __atomic_fetch_or(packed[place.parameter] + place.local / 8, bit, __ATOMIC_RELAXED);
      ++scatter.counts(worker)[place.parameter].selected;
    }
  });
  scatter.add_to(stats);
}

}  // namespace fastunlearn
