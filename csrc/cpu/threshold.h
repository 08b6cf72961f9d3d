// Top-k and top-p thresholds of one row in cache, over the searches of threshold_search.h.
#pragma once

#include "simd.h"
#include "threshold_search.h"

namespace dd2::cpu::DD2_ISA {
namespace {

// How many of `values` (a multiple of kLanes, padded with -inf) are at least `threshold`.
DD2_INLINE int64_t count_at_least(const float* values, int64_t padded, float threshold) {
  const Vec limit = broadcast(threshold);
  IntVec even{}, odd{};
  int64_t i = 0;
  for (; i + 2 * kLanes <= padded; i += 2 * kLanes) {
    even -= load(values + i) >= limit;
    odd -= load(values + i + kLanes) >= limit;
  }
  if (i < padded) even -= load(values + i) >= limit;
  return reduce_add(even + odd);
}

// Total mass of the values strictly above `threshold`.
DD2_INLINE float mass_above(const float* values, const float* mass, int64_t padded,
                            float threshold) {
  const Vec limit = broadcast(threshold);
  Vec total{};
  for (int64_t i = 0; i < padded; i += kLanes) {
    total += load(values + i) > limit ? load(mass + i) : Vec{};
  }
  return reduce_add(total);
}

// Calls visit(i) for every i < padded whose lane of inside(i / kLanes * kLanes) is set; few are.
template <typename Inside, typename Visit>
DD2_INLINE void visit_few(int64_t padded, const Inside& inside, const Visit& visit) {
  for (int64_t i = 0; i < padded; i += kLanes) {
    const IntVec set = inside(i);
    if (!any(set)) continue;
    int32_t lanes[kLanes];
    std::memcpy(lanes, &set, sizeof(set));
    for (int lane = 0; lane < kLanes; ++lane) {
      if (lanes[lane]) visit(i + lane);
    }
  }
}

// Insertion sort of at most kCandidates; `with` is carried along.
DD2_INLINE void sort_descending(float* values, int64_t size, float* with = nullptr) {
  for (int64_t i = 1; i < size; ++i) {
    const float value = values[i], carried = with != nullptr ? with[i] : 0.0f;
    int64_t k = i;
    for (; k > 0 && values[k - 1] < value; --k) {
      values[k] = values[k - 1];
      if (with != nullptr) with[k] = with[k - 1];
    }
    values[k] = value;
    if (with != nullptr) with[k] = carried;
  }
}

// The k-th largest of `values`, 1 <= k <= count.
DD2_NOINLINE float kth_largest(const float* values, int64_t padded, int64_t count, int64_t k,
                             RowStatistics stats) {
  KthSearch search(stats, count, k);
  while (search.unresolved()) search.update(count_at_least(values, padded, search.bracket.guess));
  const float low = search.bracket.low, high = search.bracket.high;
  if (search.resolved_exactly()) return low;
  float candidates[kCandidates];
  int64_t size = 0;
  const auto inside = [&](int64_t i) {
    return (load(values + i) >= broadcast(low)) & (load(values + i) < broadcast(high));
  };
  visit_few(count, inside, [&](int64_t i) {
    if (i < count) candidates[size++] = values[i];
  });
  sort_descending(candidates, size);
  return candidates[k - search.at_high - 1];
}

// The smallest of `values` whose strictly larger values hold less mass than `wanted`;
// `mass` is padded with 0.
DD2_NOINLINE float nucleus_threshold(const float* values, const float* mass, int64_t padded,
                                   float largest, float wanted) {
  const auto between = [&](const Bracket& b) {
    return count_at_least(values, padded, next_float(b.low)) -
           count_at_least(values, padded, b.high);
  };
  NucleusSearch search(largest, wanted, 0);
  search.between = between(search.bracket);
  while (search.unresolved()) {
    search.update(mass_above(values, mass, padded, search.bracket.guess));
    search.between = between(search.bracket);
  }
  const float low = search.bracket.low, high = search.bracket.high;
  if (search.resolved_exactly()) return high;
  float candidates[kCandidates], masses[kCandidates];
  int64_t size = 0;
  const auto inside = [&](int64_t i) {
    return (load(values + i) > broadcast(low)) & (load(values + i) < broadcast(high));
  };
  visit_few(padded, inside, [&](int64_t i) {
    masses[size] = mass[i];
    candidates[size++] = values[i];
  });
  sort_descending(candidates, size, masses);
  float kept = high;
  float strictly_above = mass_above(values, mass, padded, previous_float(high));
  for (int64_t i = 0; i < size && strictly_above < wanted;) {
    kept = candidates[i];
    for (; i < size && candidates[i] == kept; ++i) strictly_above += masses[i];
  }
  return kept;
}

}  // namespace
}  // namespace dd2::cpu::DD2_ISA
