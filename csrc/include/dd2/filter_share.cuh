// Both filters of a row in shared memory at once, which leaves of it what they may keep.
//
// Logits from a guess below the k-th largest on are moved together, a histogram of them has counts and
// masses, and each filter's logit is found among the few of one bin. Where the guess was too high, or
// a bin has many logits that differ, filter_summarized() finds the same.
#pragma once

#include "dd2/filter_row.cuh"
#include "dd2/row_share.cuh"

namespace dd2 {

// A count above a mass, as one number.
struct Tally {
  static constexpr int kMassBits = 48;
  static constexpr unsigned kOne = 1u << (kMassBits - 32);  // of the upper word
  using Sum = unsigned long long;

  DD2_DEVICE static Sum of(unsigned low, unsigned high) {
    return static_cast<Sum>(high) << 32 | low;
  }
  DD2_DEVICE static unsigned upper(Sum tally) { return static_cast<unsigned>(tally >> 32); }
  DD2_DEVICE static unsigned count(Sum tally) { return upper(tally) / kOne; }
  DD2_DEVICE static Sum mass(Sum tally) {
    return of(static_cast<unsigned>(tally), upper(tally) % kOne);
  }
};

// As LinearBins, with one rounding: a place is found by one instruction, if `fits`.
template <int kBins>
struct QuickBins {
  using Places = LinearBins<kBins>;
  float scale;
  float start;
  float filler;  // whose bin is one of the lowest kFillerBins, that no logit from the floor on has
  bool fits;     // all that has a bin

  DD2_DEVICE QuickBins(float largest, float floor) : scale(Places(largest, floor).scale) {
    // Then `start` is right to a bin, and so is a logit near the floor.
    fits = __builtin_fabsf(largest * scale) < 2.0f && scale > 1e-30f && scale < 1e25f;
    const float below = static_cast<float>(threadIdx.x % 4 + 7);
    filler = fused_multiply_add(-below, __fdividef(Places::kUnit, scale), floor);
    start = fused_multiply_add(-largest, scale, 2.0f + Places::kWidth + 12 * Places::kUnit);
  }
  DD2_DEVICE float position(float logit) const { return fused_multiply_add(logit, scale, start); }
  DD2_DEVICE unsigned place(float logit) const { return __float_as_uint(position(logit)); }
  // As there.
  DD2_DEVICE bool has_none(const Logits<4>& logits, unsigned wanted) const {
    float product = 1.0f;
    for (const float logit : logits.value) product *= position(logit) - __uint_as_float(wanted);
    return product != 0.0f;
  }
};

template <int kBlock>
class ShareFilter {
 public:
  using Sum = Tally::Sum;
  static constexpr int kOwnBins = Selection<kBlock>::kOwn, kFillerBins = 8;
  using Bins = QuickBins<Selection<kBlock>::kBins>;

  // masses: whether find<true>() will be asked for.
  DD2_DEVICE ShareFilter(const RowShare<kBlock>& own, const Bins& quick, float most, bool masses,
                         Selection<kBlock>& selection)
      : share(own), s(selection), bins(quick), largest(most) {
    const SharedAddress low = shared_address(s.low), high = shared_address(s.high);
    if (masses) {
      for_each_logits<kBlock>(share, 0, [&](const auto& logits) {
        for (const float logit : logits.value) {
          tally_in_shared<4 * Selection<kBlock>::kBins>(low, bins.place(logit),
                                                        mass_of(logit - largest));
        }
      });
    } else {
      for_each_logits<kBlock>(share, 0, [&](const auto& logits) {
        for (const float logit : logits.value) {
          add_in_shared<Tally::kOne>(high, bins.place(logit));
        }
      });
    }
    __syncthreads();
    const int first = first_bin();
    Sum sum = 0;
    for (int n = 0; n < kOwnBins; n += 4) {
      const uint4 low = *reinterpret_cast<const uint4*>(s.low + first + n);
      const uint4 high = *reinterpret_cast<const uint4*>(s.high + first + n);
      sum += Tally::of(low.x, high.x) + Tally::of(low.y, high.y);
      sum += Tally::of(low.z, high.z) + Tally::of(low.w, high.w);
    }
    if (first < kFillerBins) sum = 0;
    const Scan<Sum> scan = block_scan<kBlock>(sum);
    own_sum = sum;
    before = scan.before;
    total = scan.total;
  }

  // The logit at which the counts, or the masses, of those from it on reach `wanted`, at most all;
  // `kept` becomes the mass of all those. False where it is not found.
  template <bool kMasses>
  DD2_DEVICE bool find(Sum wanted, float& logit, Sum& kept) {
    const auto reaches = [&](Sum tally) {
      return kMasses ? Tally::mass(tally) >= wanted
                     : Tally::count(tally) >= static_cast<unsigned>(wanted);
    };
    if (!reaches(before) && reaches(before + own_sum)) {
      Sum above = before, tally = 0;
      int bin = first_bin() + kOwnBins;
      do {
        above += tally;
        --bin;
        tally = Tally::of(s.low[bin], s.high[bin]);
      } while (!reaches(above + tally));
      s.place = Bins::Places::kFirst + static_cast<unsigned>(bin);
      s.above = above;
      s.inside = tally;
      s.size = 0;
      s.least = 0x7fffffff;
      s.greatest = -0x7fffffff;
    }
    __syncthreads();
    const Sum above = s.above, inside = s.inside;
    const int size = static_cast<int>(Tally::count(inside));
    if (size > kCandidates) {
      kept = Tally::mass(above) + Tally::mass(inside);
      return all_are_equal(s.place, logit);
    }
    gather(s.place);
    __syncthreads();
    const int mine = static_cast<int>(threadIdx.x);
    if (mine < size) {
      const float value = s.candidates[mine].value;
      Sum larger = above, kept_too = above;
      DD2_UNROLL(2)
      for (int n = 0; n < size; ++n) {
        const Candidate other = s.candidates[n];
        const Sum tally = Tally::of(other.weight, Tally::kOne);
        if (other.value > value) larger += tally;
        if (other.value >= value) kept_too += tally;
      }
      if (!reaches(larger) && reaches(kept_too)) {
        s.answer = value;
        s.kept = Tally::mass(kept_too);
      }
    }
    __syncthreads();
    logit = s.answer;
    kept = s.kept;
    return true;
  }

  Sum total;

 private:
  RowShare<kBlock> share;
  Selection<kBlock>& s;
  Bins bins;
  float largest;
  Sum own_sum, before;

  // Of the bins of this thread; those of the first one are at the top.
  DD2_DEVICE static int first_bin() {
    return kOwnBins * (kBlock - 1 - static_cast<int>(threadIdx.x));
  }

  // Calls visit(logit) for those of a bin.
  template <typename Visit>
  DD2_DEVICE void for_each_in(unsigned place, const Visit& visit) const {
    for_each_logits<kBlock>(share, 0, [&](const auto& logits) {
      if (bins.has_none(logits, place)) return;
      for (const float logit : logits.value) {
        if (bins.place(logit) == place) visit(logit);
      }
    });
  }

  DD2_DEVICE void gather(unsigned place) {
    for_each_in(place, [&](float logit) {
      const int n = atomicAdd(&s.size, 1);
      s.candidates[n] = {logit, mass_of(logit - largest)};
    });
  }

  DD2_DEVICE bool all_are_equal(unsigned place, float& logit) {
    int least = 0x7fffffff, greatest = -0x7fffffff;
    for_each_in(place, [&](float one) {
      least = Min()(least, float_key(one));
      greatest = Max()(greatest, float_key(one));
    });
    least = warp_reduce(least, Min());
    greatest = warp_reduce(greatest, Max());
    if (lane_index() == 0) {
      atomicMin(&s.least, least);
      atomicMax(&s.greatest, greatest);
    }
    __syncthreads();
    least = s.least;
    greatest = s.greatest;
    __syncthreads();
    logit = key_float(least);
    return least == greatest;
  }
};

// The thresholds of a row whose summary this is: the k-th largest logit if k > 0, and top-p's if that
// is less than 1. False where they are not found.
template <int kBlock>
DD2_DEVICE bool filter_share(RowShare<kBlock>& share, int k, float top_p, const RowSummary& summary,
                             Selection<kBlock>& selection, RowFilter& filter) {
  const float largest = summary.largest;
  const float floor = k > 0 ? guess_kth_largest(k, summary) : lowest_with_mass(largest);
  const QuickBins<Selection<kBlock>::kBins> bins(largest, floor);
  if (!bins.fits) return false;
  share.keep_from(floor, bins.filler);
  ShareFilter<kBlock> filters(share, bins, largest, top_p < 1.0f, selection);
  if (static_cast<int>(Tally::count(filters.total)) < k) return false;
  Tally::Sum mass = Tally::mass(filters.total);
  if (k > 0 && !filters.template find<false>(k, filter.threshold, mass)) return false;
  if (!(top_p < 1.0f)) return true;
  const Tally::Sum wanted = Weighing{largest, floor, top_p}.wanted(mass);
  return filters.template find<true>(wanted, filter.threshold, mass);
}

// Stages a row and filters it; with_row(use) calls use(row). Of the shares is left what the filters
// may keep.
template <int kBlock, typename WithRow>
DD2_DEVICE RowFilter filter_staged(const WithRow& with_row, const TeacherRows& p, float* staged,
                                   RowShare<kBlock>& share, Selection<kBlock>& selection) {
  const int vocabulary = static_cast<int>(p.vocabulary);
  for (bool again = false;; again = true) {
    const RowSummary summary = with_row(
        [&](const auto& row) { return summarize<kBlock, true>(row, vocabulary, staged); });
    RowFilter filter{summary.largest, negative_infinity(), summary.invalid};
    if (summary.invalid) return filter;
    if (again) return filter_summarized(share, p, summary, selection);
    const int k = static_cast<int>(p.top_k), counted = k < summary.finite ? k : 0;
    if (counted == 0 && !(p.top_p < 1.0f)) return filter;
    if (filter_share(share, counted, p.top_p, summary, selection, filter)) return filter;
    __syncthreads();
    share = RowShare<kBlock>(staged, vocabulary);
    selection.clear();
  }
}

}  // namespace dd2
