// The smallest logit that top-k and top-p keep, as a bracketed search over thresholds: a few passes
// that count (or weigh) a row instead of a sort. Exact for any ties. The searches only decide where
// to look next; threshold.h counts, and resolves the last kCandidates itself.
#pragma once

#include "dd2/posterior.cuh"

namespace dd2 {

constexpr int kCandidates = 32;

// Order-preserving map of floats to integers (both zeros to 0) and back.
DD2_HD int float_key(float value) {
  int bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  return bits >= 0 ? bits : (bits ^ 0x7fffffff) + 1;
}

DD2_HD float key_float(int key) {
  const int bits = key >= 0 ? key : (key - 1) ^ 0x7fffffff;
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

DD2_HD float next_float(float value) { return key_float(float_key(value) + 1); }
DD2_HD float previous_float(float value) { return key_float(float_key(value) - 1); }

DD2_HD float key_midpoint(float low, float high) {
  return key_float(static_cast<int>((static_cast<long long>(float_key(low)) + float_key(high)) >> 1));
}

struct RowStatistics {
  float largest;
  float mean;       // of the finite logits
  float deviation;  // likewise
};

// The interval (low, high) still open and the next threshold to try in it. Interpolation, with the
// middle every third pass; after a dozen passes the middle of the floats, which ties cannot stall.
struct Bracket {
  float low;
  float high;
  float guess;
  int pass;

  DD2_HD void propose(float interpolated) {
    guess = pass >= 12 ? key_midpoint(low, high)
            : pass % 3 == 2 && low > negative_infinity() ? 0.5f * (low + high)
                                                         : interpolated;
    if (!(guess > low && guess < high)) guess = key_midpoint(low, high);
    ++pass;
  }

  // False where no float lies between.
  DD2_HD bool open() const { return guess > low && guess < high; }
};

// Standard normal quantile, to the few digits that a first guess needs.
DD2_HD float normal_quantile(float upper_tail) {
  const float q = upper_tail < 0.5f ? upper_tail : 1.0f - upper_tail;
  const float r = __builtin_sqrtf(-2.0f * __builtin_logf(q));
  const float z = r - (2.30753f + 0.27061f * r) / (1.0f + 0.99229f * r + 0.04481f * r * r);
  return upper_tail < 0.5f ? z : -z;
}

// Searches the k-th largest of `count` logits, 1 <= k <= count: while unresolved(), count the logits
// that are at least bracket.guess and update(). Then low is the answer where resolved_exactly(),
// else the (k - at_high)-th largest of the logits in [low, high).
struct KthSearch {
  Bracket bracket;
  long long k;
  long long at_low;   // how many are >= low: at least k
  long long at_high;  // how many are >= high: less than k
  float deviation;

  DD2_HD KthSearch(RowStatistics stats, long long count, long long wanted)
      : bracket{negative_infinity(), next_float(stats.largest), 0.0f, 0},
        k(wanted),
        at_low(count),
        at_high(0),
        deviation(stats.deviation) {
    const float tail = (static_cast<float>(k) - 0.5f) / static_cast<float>(count);
    bracket.propose(stats.mean + stats.deviation * normal_quantile(tail));
  }

  DD2_HD bool unresolved() const { return at_low - at_high > kCandidates && bracket.open(); }
  DD2_HD bool resolved_exactly() const { return at_low - at_high > kCandidates; }

  DD2_HD void update(long long found) {
    const bool enough = found >= k;
    (enough ? bracket.low : bracket.high) = bracket.guess;
    (enough ? at_low : at_high) = found;
    if (bracket.low == negative_infinity() || at_high == 0) {
      const float step = 0.25f * deviation * static_cast<float>(bracket.pass);
      bracket.propose(bracket.guess + (enough ? step : -step));
      return;
    }
    const float a = __builtin_logf(static_cast<float>(at_low));
    const float b = __builtin_logf(static_cast<float>(at_high));
    const float share = (a - __builtin_logf(static_cast<float>(k) - 0.5f)) / (a - b);
    bracket.propose(bracket.low + (bracket.high - bracket.low) * share);
  }
};

// Searches the smallest logit whose strictly larger logits weigh less than `wanted`: while
// unresolved(), weigh the logits above bracket.guess, update() and recount `between`, the logits
// strictly between low and high. Then the answer is high or one of those.
struct NucleusSearch {
  Bracket bracket;
  float wanted;
  float at_low;       // mass above low: at least wanted
  float at_high;      // mass above high: less than wanted
  long long between;  // logits in (low, high)

  DD2_HD NucleusSearch(float largest, float mass_wanted, long long below_largest)
      : bracket{negative_infinity(), largest, 0.0f, 0},
        wanted(mass_wanted),
        at_low(0.0f),
        at_high(0.0f),
        between(below_largest) {
    bracket.propose(largest - 4.0f);
  }

  DD2_HD bool unresolved() const { return between > kCandidates && bracket.open(); }
  DD2_HD bool resolved_exactly() const { return between > kCandidates; }

  DD2_HD void update(float above) {
    const bool enough = above >= wanted;
    (enough ? bracket.low : bracket.high) = bracket.guess;
    (enough ? at_low : at_high) = above;
    if (bracket.low == negative_infinity()) {
      bracket.propose(bracket.guess - 2.0f * static_cast<float>(bracket.pass));
      return;
    }
    const float share = (at_low - wanted) / (at_low - at_high);
    bracket.propose(bracket.low + (bracket.high - bracket.low) * share);
  }
};

}  // namespace dd2
