// Bodies of the kernels, as templates over the lane policy V. Included inside a namespace and a
// target region of each level, after every other header.

template <class V>
inline typename V::U raw_to_bits(const float*, typename V::U raw) {
  return raw;
}
template <class V>
inline typename V::U raw_to_bits(const BFloat16*, typename V::U raw) {
  return raw << 16;
}
template <class V>
inline typename V::U raw_to_bits(const Float16*, typename V::U raw) {
  return V::bits(V::half_to_float(raw));
}

// Rounds a value without NaN payload to the storage type.
template <class V>
inline typename V::U bits_to_raw(const float*, typename V::U bits) {
  return bits;
}
template <class V>
inline typename V::U bits_to_raw(const BFloat16*, typename V::U bits) {
  return (bits + V::splat_u(0x7FFFu) + (bits >> 16 & V::splat_u(1u))) >> 16;
}
template <class V>
inline typename V::U bits_to_raw(const Float16*, typename V::U bits) {
  return V::float_to_half(V::from_bits(bits));
}

// Greatest lane.
template <class V>
inline uint32_t reduce_max(typename V::I x) {
  int32_t greatest = 0;
  for (int i = 0; i < V::kLanes; ++i) greatest = x[i] > greatest ? x[i] : greatest;
  return static_cast<uint32_t>(greatest);
}

// One word of both bitmaps. Keys stay below 2^31, so signed compares order them.
template <class V, class T>
inline void scan_word(const T* x, typename V::I lo, typename V::I hi, typename V::I* greatest,
                      uint64_t* sure, uint64_t* maybe) {
  using I = typename V::I;
  uint64_t above = 0, reach = 0;
  for (int i = 0; i < 64; i += V::kLanes) {
    const I key = (I)(raw_to_bits<V>(x, V::load_raw(x + i)) & V::splat_u(0x7FFFFFFFu));
    *greatest = V::max(*greatest, key);
    above |= static_cast<uint64_t>(V::greater(key, hi)) << i;
    reach |= static_cast<uint64_t>(V::greater(key, lo)) << i;
  }
  *sure = above;
  *maybe = reach & ~above;
}

inline int count_bits(const uint64_t* words, int num_words) {
  int count = 0;
  for (int i = 0; i < num_words; ++i) count += __builtin_popcountll(words[i]);
  return count;
}

template <class V, class T>
Scan scan(const T* x, int count, Bracket bracket, uint64_t* sure, uint64_t* maybe) {
  using I = typename V::I;
  const I hi = (I)V::splat_u(bracket.hi);
  const I lo = (I)(V::splat_u(bracket.lo) - V::splat_u(1u));  // key >= lo is key > lo - 1
  I greatest = {};
  const int whole = count / 64;
  for (int word = 0; word < whole; ++word) {
    scan_word<V>(x + 64 * word, lo, hi, &greatest, &sure[word], &maybe[word]);
  }
  const int rest = count % 64;
  if (rest != 0) {
    T padded[64] = {};
    std::memcpy(padded, x + 64 * whole, rest * sizeof(T));
    const uint64_t kept = (uint64_t{1} << rest) - 1;
    scan_word<V>(padded, lo, hi, &greatest, &sure[whole], &maybe[whole]);
    sure[whole] &= kept;
    maybe[whole] &= kept;
  }
  const int words = (count + 63) / 64;
  return {reduce_max<V>(greatest), count_bits(sure, words), count_bits(maybe, words)};
}

// Writes two places, then four at a time, whether or not so many bits are left: a loop over the
// bits would end unpredictably.
inline int expand(const uint64_t* words, int num_words, int first, uint16_t* out) {
  uint16_t* const begin = out;
  for (int i = 0; i < num_words; ++i, first += 64) {
    uint64_t word = words[i];
    const int count = __builtin_popcountll(word);
    for (int j = 0; j < 2; ++j) {
      out[j] = static_cast<uint16_t>(first + __builtin_ctzll(word | uint64_t{1} << 63));
      word &= word - 1;
    }
    for (int done = 2; done < count; done += 4) {
      for (int j = 0; j < 4; ++j) {
        out[done + j] = static_cast<uint16_t>(first + __builtin_ctzll(word | uint64_t{1} << 63));
        word &= word - 1;
      }
    }
    out += count;
  }
  return static_cast<int>(out - begin);
}

// Word `lane` (0..3) of each block.
template <class V>
inline typename V::U pick(const PhiloxBlock<V>& block, typename V::U lane) {
  using U = typename V::U;
  const U low = (lane & V::splat_u(1u)) != V::splat_u(0) ? block.word[1] : block.word[0];
  const U high = (lane & V::splat_u(1u)) != V::splat_u(0) ? block.word[3] : block.word[2];
  return (lane & V::splat_u(2u)) != V::splat_u(0) ? high : low;
}

template <class V>
void words_at(const uint64_t* index, int count, const Rng& rng, uint32_t stream, uint32_t* words) {
  using U = typename V::U;
  constexpr int kLanes = V::kLanes;
  const PhiloxKeys<V> keys(rng.seed);
  for (int i = 0; i < count; i += kLanes) {
    const int filled = count - i < kLanes ? count - i : kLanes;
    uint64_t padded[kLanes] = {};
    const uint64_t* from = index + i;
    if (filled < kLanes) {
      std::memcpy(padded, from, filled * sizeof(uint64_t));
      from = padded;
    }
    U low, high;
    V::load_halves(from, &low, &high);
    const auto block = philox_block<V>(low >> 2 | high << 30, high >> 2, stream, rng.step, keys);
    uint32_t out[kLanes];
    V::store_u(out, pick<V>(block, low & V::splat_u(3u)));
    std::memcpy(words + i, out, filled * sizeof(uint32_t));
  }
}

// The blocks are dealt to the lanes so that transposing inside each group of four lanes leaves the
// words in the order of their indices.
template <class V>
void words_from(uint64_t first_block, int num_blocks, const Rng& rng, uint32_t stream,
                uint32_t* words) {
  using U = typename V::U;
  constexpr uint32_t kGroups = V::kLanes / 4;
  const PhiloxKeys<V> keys(rng.seed);
  const U dealt = (V::iota() >> 2) + (V::iota() & V::splat_u(3u)) * V::splat_u(kGroups);
  for (int i = 0; i < num_blocks; i += V::kLanes) {
    const uint64_t first = first_block + static_cast<uint64_t>(i);
    const U low = V::splat_u(static_cast<uint32_t>(first)) + dealt;
    U high = V::splat_u(static_cast<uint32_t>(first >> 32));
    high += low < dealt ? V::splat_u(1u) : V::splat_u(0);  // carry out of the low half
    auto block = philox_block<V>(low, high, stream, rng.step, keys);
    V::transpose(block.word);
    for (int j = 0; j < 4; ++j) V::store_u(words + 4 * i + j * V::kLanes, block.word[j]);
  }
}

// The central ratio for all words, the tail only for the 15 % that lie in it, packed together.
template <class V>
void normal_noise(const uint32_t* words, int count, float* z) {
  using F = typename V::F;
  constexpr int kLanes = V::kLanes;
  uint64_t tails[kNoiseBatch / 64] = {};
  for (int i = 0; i < count; i += kLanes) {
    const Folded<V> folded = fold<V>(V::load_u(words + i));
    const F q = to_unit<V>(folded.v, 0x1p-32f);
    V::store_f(z + i, with_sign<V>(normal_centre<V>(q), folded.sign));
    // q and the split are positive, so their bits compare like integers.
    const auto split = (typename V::I)V::bits(V::splat_f(kNormalSplit));
    tails[i / 64] |= static_cast<uint64_t>(V::greater((typename V::I)V::bits(q), split)) << i % 64;
  }
  if (count % 64 != 0) tails[count / 64] &= (uint64_t{1} << count % 64) - 1;
  // Gathered, computed and scattered in turn: done together, each vector would wait for its stores.
  uint16_t place[kNoiseBatch + kExpandSlack];
  const int found = expand(tails, (count + 63) / 64, 0, place);
  uint32_t gathered[kNoiseBatch + kLanes];
  float out[kNoiseBatch + kLanes];
  for (int i = 0; i < found; ++i) gathered[i] = words[place[i]];
  std::memset(gathered + found, 0, kLanes * sizeof(uint32_t));
  for (int i = 0; i < found; i += kLanes) {
    const Folded<V> folded = fold<V>(V::load_u(gathered + i));
    V::store_f(out + i, with_sign<V>(normal_tail<V>(folded.v), folded.sign));
  }
  for (int i = 0; i < found; ++i) z[place[i]] = out[i];
}

template <class V>
void noise(NoiseKind kind, const uint32_t* words, int count, float* z) {
  if (kind == NoiseKind::kNormal) return normal_noise<V>(words, count, z);
  for (int i = 0; i < count; i += V::kLanes) {
    const auto word = V::load_u(words + i);
    V::store_f(z + i, kind == NoiseKind::kUniform ? uniform<V>(word) : laplace<V>(word));
  }
}

// Numbers that go through the network together: several vectors, to hide the latency of its chain.
template <class V>
inline constexpr int kWalkers = 4 * V::kLanes;

// One pass of kWalkers numbers through the network, forwards or backwards, in place.
template <class V, bool kBack>
inline void feistel_pass(const Permutation& permutation, uint64_t* x) {
  using U = typename V::U;
  constexpr int kLanes = V::kLanes;
  const int shift = permutation.right_bits;
  U left[4], right[4];
  for (int v = 0; v < 4; ++v) {
    U low, high;
    V::load_halves(x + v * kLanes, &low, &high);
    right[v] = low & V::splat_u(permutation.right_mask);
    // Both halves have at most 31 bits, so the left one ends below bit 62 of x.
    left[v] = low >> shift | high << (32 - shift);
  }
  if constexpr (kBack) {
    permutation.rounds_back<V>(left, right);
  } else {
    permutation.rounds<V>(left, right);
  }
  for (int v = 0; v < 4; ++v) {
    V::store_halves(x + v * kLanes, right[v] | left[v] << shift, left[v] >> (32 - shift));
  }
}

// One pass for all, then full batches of those that fell outside [0, n) until none is left.
template <class V, bool kBack>
void permute(const Permutation& permutation, uint64_t first, int count, uint64_t* out) {
  constexpr int kBatch = kWalkers<V>;
  uint64_t walking[kBatch];
  int place[kBatch], walkers = 0, next = 0;
  for (int i = 0; i < count; i += kBatch) {
    const int filled = count - i < kBatch ? count - i : kBatch;
    for (int j = 0; j < kBatch; ++j) walking[j] = first + static_cast<uint64_t>(i + j);
    feistel_pass<V, kBack>(permutation, walking);
    for (int j = 0; j < filled; ++j) out[i + j] = walking[j];
  }
  do {
    for (; next < count && walkers < kBatch; ++next) {
      walking[walkers] = out[next];
      place[walkers] = next;
      walkers += out[next] >= permutation.n;
    }
    if (walkers == 0) return;
    for (int j = walkers; j < kBatch; ++j) walking[j] = 0;
    feistel_pass<V, kBack>(permutation, walking);
    int left = 0;  // walkers that go on
    for (int j = 0; j < walkers; ++j) {
      out[place[j]] = walking[j];
      walking[left] = walking[j];
      place[left] = place[j];
      left += walking[j] >= permutation.n;
    }
    walkers = left;
  } while (walkers > 0 || next < count);
}

// What was drawn for each lane's element.
template <class V>
struct DrawnLanes {
  typename V::F z;
  typename V::U words;
};

// The new value of a weight as storage bits; both in lanes.
template <class V, class T>
inline typename V::U updated(typename V::F old, DrawnLanes<V> drawn, typename V::F scale,
                             RowChange change) {
  using F = typename V::F;
  using U = typename V::U;
  const T* const tag = nullptr;
  if (change.mode == UpdateMode::kZero) return V::splat_u(0);
  const F step = V::mul(drawn.z, scale);
  const F sum = change.mode == UpdateMode::kReplace ? step : V::add(old, step);
  // A NaN gets the default payload: payloads differ between processors.
  const U bits = sum == sum ? V::bits(sum) : V::splat_u(0x7FC00000u);
  U raw;
  if constexpr (sizeof(T) == 2) {
    raw = change.rounding == Rounding::kStochastic ? round_stochastically<V>(tag, bits, drawn.words)
                                                   : bits_to_raw<V>(tag, bits);
  } else {
    raw = bits_to_raw<V>(tag, bits);
  }
  const U nan = bits_to_raw<V>(tag, V::splat_u(0x7FC00000u));
  return sum == sum ? raw : nan;
}

// Counts for each lane, at most kNoiseBatch of them.
template <class V>
struct LaneTally {
  typename V::I overflow = {}, unchanged = {};

  void add_to(Tally* tally) const {
    for (int i = 0; i < V::kLanes; ++i) {
      tally->overflow += overflow[i];
      tally->unchanged += unchanged[i];
    }
  }
};

// Updates the chosen of V::kLanes weights, at least one. A vector comparison gives -1 where it
// holds.
template <class V, class T>
inline void update_lanes(T* w, DrawnLanes<V> drawn, typename V::F scale, uint32_t chosen,
                         RowChange change, bool commit, LaneTally<V>* tally) {
  using I = typename V::I;
  using U = typename V::U;
  const U raw = V::load_raw(w);
  const auto old = V::from_bits(raw_to_bits<V>(w, raw));
  const U fresh = updated<V, T>(old, drawn, scale, change);
  const auto value = V::from_bits(raw_to_bits<V>(w, fresh));
  const I infinity = (I)V::splat_u(0x7F800000u);
  const U magnitude = V::splat_u(0x7FFFFFFFu);
  const I mask = V::mask_of(chosen);
  const I old_finite = infinity > (I)(V::bits(old) & magnitude);
  const I new_finite = infinity > (I)(V::bits(value) & magnitude);
  tally->overflow -= mask & old_finite & ~new_finite;
  tally->unchanged -= mask & (I)(old == value);
  if (commit && chosen != 0) V::store_raw(w, mask != 0 ? fresh : raw, chosen);
}

// Moves the chosen words to the front. A full vector is stored each time: it ends no later than the
// words that were read.
template <class V>
void pack(uint32_t* words, const uint64_t* mask, int count) {
  constexpr uint32_t kAll = (uint32_t{1} << V::kLanes) - 1;
  uint32_t* out = words;
  for (int i = 0; i < count; i += V::kLanes) {
    const uint32_t chosen = static_cast<uint32_t>(mask[i / 64] >> i % 64) & kAll;
    V::store_u(out, V::pack(V::load_u(words + i), chosen));
    out += __builtin_popcount(chosen);
  }
}

// Takes what was drawn for the chosen lanes from the front of the lists.
template <class V>
inline DrawnLanes<V> take_lanes(uint32_t chosen, Drawn* drawn) {
  const int count = __builtin_popcount(chosen);
  DrawnLanes<V> out = {V::from_bits(V::unpack(V::load_u(drawn->z), chosen)), {}};
  drawn->z += count;
  if (drawn->words != nullptr) {
    out.words = V::unpack(V::load_u(drawn->words), chosen);
    drawn->words += count;
  }
  return out;
}

template <class V, class T>
void update(T* w, Drawn drawn, const uint64_t* mask, int count, RowChange change, bool commit,
            Tally* tally) {
  constexpr int kLanes = V::kLanes;
  constexpr uint32_t kAll = (uint32_t{1} << kLanes) - 1;
  const auto scale = V::splat_f(static_cast<float>(change.scale));
  LaneTally<V> found;
  const int whole = count / kLanes * kLanes;
  for (int i = 0; i < whole; i += kLanes) {
    const uint32_t chosen = static_cast<uint32_t>(mask[i / 64] >> i % 64) & kAll;
    const DrawnLanes<V> own = take_lanes<V>(chosen, &drawn);
    update_lanes<V>(w + i, own, scale, chosen, change, commit, &found);
  }
  const int rest = count - whole;
  if (rest > 0) {
    const uint32_t chosen = static_cast<uint32_t>(mask[whole / 64] >> whole % 64) & kAll;
    const DrawnLanes<V> own = take_lanes<V>(chosen, &drawn);
    T padded[kLanes] = {};
    std::memcpy(padded, w + whole, rest * sizeof(T));
    update_lanes<V>(padded, own, scale, chosen, change, commit, &found);
    for (int i = 0; commit && i < rest; ++i) {
      if ((chosen >> i & 1u) != 0) w[whole + i] = padded[i];
    }
  }
  found.add_to(tally);
}

template <class V>
constexpr Kernels table() {
  return {scan<V, float>,
          scan<V, BFloat16>,
          scan<V, Float16>,
          count_bits,
          expand,
          words_at<V>,
          words_from<V>,
          noise<V>,
          permute<V, false>,
          permute<V, true>,
          pack<V>,
          update<V, float>,
          update<V, BFloat16>,
          update<V, Float16>};
}
