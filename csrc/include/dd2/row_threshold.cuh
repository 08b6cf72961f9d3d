// The smallest logit that top-k and top-p keep of one row, by one block.
//
// Both are one selection: the smallest logit whose strictly larger ones weigh less than `wanted`,
// every logit weighing 1, or its probability mass in fixed point. A histogram of the logits' weights
// in shared memory says in which of its bins it lies, and the few logits of that bin are ranked;
// where they are many, the bin is split again, by the bits of its floats. Sums are of integers: no
// order of the threads, nor of the codes, changes them.
#pragma once

#include "dd2/guided_row.cuh"
#include "dd2/mma.cuh"

namespace dd2 {

constexpr int kCandidates = 64;

// Order-preserving map of floats to integers, and back; it tells the zeros apart.
DD2_DEVICE int float_key(float value) {
  const int bits = __float_as_int(value);
  return bits ^ (bits >> 31 & 0x7fffffff);
}
DD2_DEVICE float key_float(int key) { return __int_as_float(key ^ (key >> 31 & 0x7fffffff)); }

// Masses are counted in units of 2^-29 of the largest logit's, so that the sum of four fits 32 bits; a
// logit further below it than kNoMass has none.
constexpr float kMassBits = 29.0f, kNoMass = 21.0f;
DD2_DEVICE unsigned mass_of(float below_largest) {
  return __float2uint_rn(exp2_flushed(fused_multiply_add(below_largest, kLog2E, kMassBits)));
}

// From which on logits have mass; a finite number.
DD2_DEVICE float lowest_with_mass(float largest) { return Max()(largest - kNoMass, -kFloatMax); }

// A logit that may be the answer, and its weight.
struct alignas(8) Candidate {
  float value;
  unsigned weight;
};

// What a selection shares; the bins are zero between selections.
template <int kBlock>
struct alignas(16) Selection {
  static constexpr int kOwn = kBlock < 128 ? 8 : 4;  // bins of a thread
  static constexpr int kBins = kOwn * kBlock;

  unsigned low[kBins];   // of the bins' weights
  unsigned high[kBins];  // likewise, of masses
  Candidate candidates[kCandidates];
  int size;  // of the bin that was found; kCandidates of them are kept
  int least, greatest;  // likewise, their keys
  unsigned place;
  unsigned long long above;  // weight of the bins above
  unsigned long long inside, kept;  // of the bin, and of the answer and those above
  float answer;

  // Before a barrier and the first selection.
  DD2_DEVICE void clear() {
    for (int n = 0; n < kOwn / 4; ++n) {
      reinterpret_cast<uint4*>(low)[n * kBlock + threadIdx.x] = make_uint4(0, 0, 0, 0);
      reinterpret_cast<uint4*>(high)[n * kBlock + threadIdx.x] = make_uint4(0, 0, 0, 0);
    }
  }
};

// Every logit weighs 1; those below `floor` are not looked at.
struct Counting {
  using Sum = unsigned;
  float largest;
  float floor;
  unsigned rank;

  DD2_DEVICE unsigned operator()(float) const { return 1; }
  DD2_DEVICE Sum wanted(Sum) const { return rank; }
  template <int kBins>
  DD2_DEVICE static void add(SharedAddress sums, unsigned place, unsigned, float logit,
                             float floor) {
    count_in_shared(sums, place, logit, floor);
  }
};

// Every logit weighs its mass, those below `floor` none; `share` of all is wanted.
struct Weighing {
  using Sum = unsigned long long;
  float largest;
  float floor;
  float share;

  DD2_DEVICE unsigned operator()(float logit) const { return mass_of(logit - largest); }
  DD2_DEVICE Sum wanted(Sum total) const {
    const double exact = static_cast<double>(share) * static_cast<double>(total);
    const Sum whole = static_cast<Sum>(exact);
    return whole + (static_cast<double>(whole) < exact || whole == 0 ? 1 : 0);
  }
  template <int kBins>
  DD2_DEVICE static void add(SharedAddress sums, unsigned place, unsigned mass, float logit,
                             float floor) {
    weigh_in_shared<4 * kBins>(sums, place, mass, logit, floor);
  }
};

// Bins of equal width from `floor` to the largest logit. What tells a bin, its place, is the bits of
// a float in [2, 4), whose last is 2^-22; four times that is its offset in bytes, in 32 bits.
template <int kBins>
struct LinearBins {
  static constexpr unsigned kFirst = 0x40000000;
  static constexpr float kUnit = 2.384185791015625e-7f;
  static constexpr float kWidth = (kBins - 24) * kUnit;
  float largest;
  float floor;
  float scale;

  DD2_DEVICE LinearBins(float most, float least) : largest(most), floor(least) {
    const float range = largest - floor;
    scale = __fdividef(kWidth, range > 1e-30f ? range : 1e-30f);
  }
  DD2_DEVICE bool holds(float) const { return true; }  // from the floor on
  DD2_DEVICE float position(float logit) const {
    return fused_multiply_add(logit - largest, scale, 2.0f + kWidth + 12 * kUnit);
  }
  DD2_DEVICE unsigned place(float logit) const { return __float_as_uint(position(logit)); }
  // Logits below the floor may share its bin: they do not matter to what is found there.
  DD2_DEVICE bool is_in(float logit, unsigned wanted) const { return place(logit) == wanted; }
  // Whether surely none is: a product of differences is 0, or NaN, where one is 0. They are at
  // least kUnit / 2 otherwise, so that four do not underflow.
  template <int kCount>
  DD2_DEVICE bool has_none(const Logits<kCount>& logits, unsigned wanted) const {
    float product = 1.0f;
    for (const float logit : logits.value) product *= position(logit) - __uint_as_float(wanted);
    return fabsf(product) > 0.0f;
  }
};

// Bins of as many floats each, of those whose keys are from `least` to `greatest`.
template <int kBins>
struct KeyBins {
  static constexpr unsigned kFirst = 0;
  static constexpr int kBits = kBins == 1024 ? 10 : 9;
  static_assert(kBins == 1 << kBits, "a power of two");
  int least;
  unsigned span;
  int shift;
  float floor;

  DD2_DEVICE KeyBins(int from, int to)
      : least(from), span(static_cast<unsigned>(to) - from), floor(-kFloatMax) {
    const int bits = 32 - __clz(static_cast<int>(span));
    shift = bits > kBits ? bits - kBits : 0;
  }
  DD2_DEVICE unsigned beyond(float logit) const {
    return static_cast<unsigned>(float_key(logit)) - static_cast<unsigned>(least);
  }
  DD2_DEVICE bool holds(float logit) const { return beyond(logit) <= span; }
  DD2_DEVICE unsigned place(float logit) const { return beyond(logit) >> shift; }
  DD2_DEVICE bool is_in(float logit, unsigned wanted) const {
    return holds(logit) && place(logit) == wanted;
  }
  template <int kCount>
  DD2_DEVICE bool has_none(const Logits<kCount>& logits, unsigned wanted) const {
    bool any = false;
    for (const float logit : logits.value) any = any | is_in(logit, wanted);
    return !any;
  }
};

// What is left to search: the logits with these keys, of which `wanted` is to be reached from above.
template <typename Weight>
struct Search {
  bool done;
  float answer;
  int least, greatest;
  typename Weight::Sum wanted;
};

// The candidate at which the weight from above reaches `wanted`.
template <typename Weight, int kBlock>
DD2_DEVICE float rank_candidates(typename Weight::Sum wanted, int size, Selection<kBlock>& s) {
  if (static_cast<int>(threadIdx.x) < size) {
    const int mine = static_cast<int>(threadIdx.x);
    const Candidate own = s.candidates[mine];
    typename Weight::Sum ahead = 0;
    DD2_NO_UNROLL
    for (int n = 0; n < size; ++n) {
      const Candidate other = s.candidates[n];
      if (other.value > own.value || (other.value == own.value && n < mine)) ahead += other.weight;
    }
    if (ahead < wanted && wanted - ahead <= own.weight) s.answer = own.value;
  }
  __syncthreads();
  return s.answer;
}

// Finds the bin that holds the answer, and the answer if its logits are few or equal.
template <int kBlock, typename Weight, typename Row, typename Bins>
DD2_DEVICE void search_bins(const Row& row, int vocabulary, const Bins& bins, const Weight& weight,
                            bool first, Search<Weight>& search, Selection<kBlock>& s) {
  using Sum = typename Weight::Sum;
  constexpr int kBins = Selection<kBlock>::kBins;
  const SharedAddress sums = shared_address(s.low);
  for_each_logits<kBlock>(row, vocabulary, [&](const auto& logits) {
    for (const float logit : logits.value) {
      if (!bins.holds(logit)) continue;
      Weight::template add<kBins>(sums, bins.place(logit), weight(logit), logit, bins.floor);
    }
  });
  __syncthreads();
  // From the top: a thread has neighbouring bins, and leaves them empty.
  constexpr int kOwn = Selection<kBlock>::kOwn;
  const int mine = kOwn * (kBlock - 1 - static_cast<int>(threadIdx.x));
  Sum weights[kOwn], own = 0;
  for (int n = 0; n < kOwn; n += 4) {
    const int first = mine + kOwn - 4 - n;
    uint4& low = *reinterpret_cast<uint4*>(s.low + first);
    const unsigned lows[4] = {low.w, low.z, low.y, low.x};
    low = make_uint4(0, 0, 0, 0);
    for (int i = 0; i < 4; ++i) weights[n + i] = lows[i];
    if constexpr (sizeof(Sum) == 8) {
      uint4& high = *reinterpret_cast<uint4*>(s.high + first);
      const unsigned highs[4] = {high.w, high.z, high.y, high.x};
      high = make_uint4(0, 0, 0, 0);
      for (int i = 0; i < 4; ++i) weights[n + i] |= static_cast<Sum>(highs[i]) << 32;
    }
    for (int i = 0; i < 4; ++i) own += weights[n + i];
  }
  const Scan<Sum> scan = block_scan<kBlock>(own);
  if (first) search.wanted = weight.wanted(scan.total);
  if (scan.total < search.wanted) {
    search.least = float_key(-kFloatMax);
    search.greatest = float_key(weight.largest);
    return;
  }
  if (scan.before < search.wanted && search.wanted - scan.before <= own) {
    Sum above = scan.before;
    int n = 0;
    for (; n < kOwn - 1 && search.wanted - above > weights[n]; ++n) above += weights[n];
    s.place = Bins::kFirst + static_cast<unsigned>(mine + kOwn - 1 - n);
    s.above = above;
    s.size = 0;
    s.least = 0x7fffffff;
    s.greatest = -0x7fffffff;
  }
  __syncthreads();
  const unsigned place = s.place;
  int least = 0x7fffffff, greatest = -0x7fffffff;
  for_each_logits<kBlock>(row, vocabulary, [&](auto logits) {
    if (bins.has_none(logits, place)) return;
    DD2_NO_UNROLL
    for (int i = 0; i < logits.kSize; ++i) {
      const float logit = logits.shift();
      if (!bins.is_in(logit, place)) continue;
      const int n = atomicAdd(&s.size, 1), key = float_key(logit);
      least = Min()(least, key);
      greatest = Max()(greatest, key);
      if (n >= kCandidates) continue;
      s.candidates[n] = {logit, weight(logit)};
    }
  });
  if (least <= greatest) {
    atomicMin(&s.least, least);
    atomicMax(&s.greatest, greatest);
  }
  __syncthreads();
  search.wanted -= static_cast<Sum>(s.above);
  search.least = s.least;
  search.greatest = s.greatest;
  search.done = search.least == search.greatest || s.size <= kCandidates;
  search.answer = search.least == search.greatest
                      ? key_float(search.least)
                      : search.done ? rank_candidates<Weight>(search.wanted, s.size, s) : 0.0f;
}

// The smallest logit whose strictly larger ones weigh less than wanted.
template <int kBlock, typename Weight, typename Row>
DD2_DEVICE float select_logit(const Row& row, int vocabulary, const Weight& weight,
                              Selection<kBlock>& s) {
  constexpr int kBins = Selection<kBlock>::kBins;
  Search<Weight> search{};
  search_bins(row, vocabulary, LinearBins<kBins>(weight.largest, weight.floor), weight, true,
              search, s);
  while (!search.done) {
    __syncthreads();
    search_bins(row, vocabulary, KeyBins<kBins>(search.least, search.greatest), weight, false,
                search, s);
  }
  return search.answer;
}

struct RowSummary {
  float largest;
  float mean;       // of the finite logits
  float deviation;  // likewise; both guide the search, no more
  int finite;
  bool invalid;  // a NaN or +inf logit, or no finite one
};

// Standard normal quantile, to the few digits that a guess needs.
DD2_DEVICE float normal_quantile(float upper_tail) {
  const float q = upper_tail < 0.5f ? upper_tail : 1.0f - upper_tail;
  const float square = -2.0f * __logf(q), r = square * rsqrtf(square);
  const float z = r - __fdividef(2.30753f + 0.27061f * r,
                                 fused_multiply_add(r, fused_multiply_add(r, 0.04481f, 0.99229f), 1.0f));
  return upper_tail < 0.5f ? z : -z;
}

// Below the k-th largest of the row's logits, 1 <= k < finite, if they are normal: a few more than k
// are at least this.
DD2_DEVICE float guess_kth_largest(int k, const RowSummary& summary) {
  const float count = static_cast<float>(k);
  const float tail = __fdividef(count - 0.5f, static_cast<float>(summary.finite));
  const float margin = fused_multiply_add(0.5f, rsqrtf(count), 0.25f);
  const float guess =
      fused_multiply_add(summary.deviation, normal_quantile(tail) - margin, summary.mean);
  // From which the largest logit is not infinitely far.
  const float least = Max()(summary.largest - kFloatMax, -kFloatMax);
  return guess > least ? guess : least;
}

// The k-th largest of the row's logits, 1 <= k < finite.
template <int kBlock, typename Row>
DD2_DEVICE float row_kth_largest(const Row& row, int vocabulary, int k, const RowSummary& summary,
                                 Selection<kBlock>& s) {
  const float floor = guess_kth_largest(k, summary);
  return select_logit(row, vocabulary,
                      Counting{summary.largest, floor, static_cast<unsigned>(k)}, s);
}

// The smallest logit, of those >= floor, whose strictly larger ones hold less than `top_p` of the
// mass of all those.
template <int kBlock, typename Row>
DD2_DEVICE float row_nucleus(const Row& row, int vocabulary, float floor, float top_p,
                             float largest, Selection<kBlock>& s) {
  const float from = Max()(floor, lowest_with_mass(largest));
  return select_logit(row, vocabulary, Weighing{largest, from, top_p}, s);
}

}  // namespace dd2
