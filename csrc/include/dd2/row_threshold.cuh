// Top-k and top-p threshold of one row by one block of kThreads, over the searches of threshold.cuh.
// `Row` gives the guided logit, float row(long long j), and how many of them a thread reads at once.
#pragma once

#include "dd2/block.cuh"
#include "dd2/threshold.cuh"

namespace dd2 {

template <typename Row, typename Keep>
DD2_DEVICE long long count_where(const Row& row, long long vocabulary, const Keep& keep) {
  int count = 0;
  for (long long j = threadIdx.x; j < vocabulary; j += kThreads) count += keep(row(j)) ? 1 : 0;
  return block_sum(count);
}

struct RowSummary {
  RowStatistics stats;
  long long finite;
  bool invalid;  // a NaN or +inf logit, or no finite one
};

template <typename Row>
DD2_DEVICE RowSummary summarize(const Row& row, long long vocabulary) {
  float largest = negative_infinity(), sum = 0.0f, square = 0.0f;
  int finite = 0, bad = 0;
  DD2_UNROLL(Row::kUnroll)
  for (long long j = threadIdx.x; j < vocabulary; j += kThreads) {
    const float value = row(j);
    if (!(value <= kFloatMax)) bad = 1;
    if (value > negative_infinity()) {
      ++finite;
      sum += value;
      square = fused_multiply_add(value, value, square);
      largest = value > largest ? value : largest;
    }
  }
  RowSummary s;
  s.finite = block_sum(finite);
  s.invalid = block_sum(bad) != 0 || s.finite == 0;
  const float count = static_cast<float>(s.finite);
  s.stats.largest = block_reduce(largest, Max());
  s.stats.mean = block_sum(sum) / count;
  const float variance = block_sum(square) / count - s.stats.mean * s.stats.mean;
  s.stats.deviation = __builtin_sqrtf(variance > 0.0f ? variance : 0.0f);
  return s;
}

// The few logits that a search leaves between low and high, in index order.
struct Candidates {
  float value[kCandidates];
  int size;
};

template <typename Row, typename Keep>
DD2_DEVICE void gather_candidates(const Row& row, long long vocabulary, const Keep& keep,
                                  Candidates& out) {
  int size = 0;
  for (long long first = 0; first < vocabulary; first += kThreads) {
    const long long j = first + threadIdx.x;
    const float value = j < vocabulary ? row(j) : negative_infinity();
    const bool kept = j < vocabulary && keep(value);
    const Position p = block_position(kept);
    if (kept) out.value[size + p.index] = value;
    size += p.total;
  }
  if (threadIdx.x == 0) out.size = size;
  __syncthreads();
}

// The k-th largest logit of the row.
template <typename Row>
DD2_DEVICE float row_kth_largest(const Row& row, long long vocabulary, long long k,
                                 RowStatistics stats, Candidates& candidates) {
  KthSearch search(stats, vocabulary, k);
  while (search.unresolved()) {
    const float guess = search.bracket.guess;
    search.update(count_where(row, vocabulary, [=](float v) { return v >= guess; }));
  }
  const float low = search.bracket.low, high = search.bracket.high;
  if (search.resolved_exactly()) return low;
  gather_candidates(row, vocabulary, [=](float v) { return v >= low && v < high; }, candidates);
  // The wanted candidate has fewer than `rank` larger ones, and at least `rank` not smaller.
  const int rank = static_cast<int>(k - search.at_high);
  float answer = negative_infinity();
  for (int i = 0; i < candidates.size; ++i) {
    int larger = 0, not_smaller = 0;
    for (int n = 0; n < candidates.size; ++n) {
      larger += candidates.value[n] > candidates.value[i];
      not_smaller += candidates.value[n] >= candidates.value[i];
    }
    if (larger < rank && not_smaller >= rank) answer = candidates.value[i];
  }
  __syncthreads();
  return answer;
}

// Total probability mass, exp(logit - largest), of the logits that `keep` admits.
template <typename Row, typename Keep>
DD2_DEVICE float mass_where(const Row& row, long long vocabulary, float largest, const Keep& keep) {
  float mass = 0.0f;
  DD2_UNROLL(Row::kUnroll)
  for (long long j = threadIdx.x; j < vocabulary; j += kThreads) {
    const float value = row(j);
    if (keep(value)) mass += exp2f((value - largest) * kLog2E);
  }
  return block_sum(mass);
}

// The smallest logit, of those >= floor, whose strictly larger ones hold less than `top_p` of the
// mass of all those.
template <typename Row>
DD2_DEVICE float row_nucleus(const Row& row, long long vocabulary, float floor, float top_p,
                             float largest, Candidates& candidates) {
  const float total =
      mass_where(row, vocabulary, largest, [=](float v) { return v >= floor; });
  const auto between = [&](const Bracket& b) {
    const float low = b.low, high = b.high;
    return count_where(row, vocabulary,
                       [=](float v) { return v >= floor && v > low && v < high; });
  };
  NucleusSearch search(largest, top_p * total, 0);
  search.between = between(search.bracket);
  while (search.unresolved()) {
    const float guess = search.bracket.guess;
    search.update(
        mass_where(row, vocabulary, largest, [=](float v) { return v >= floor && v > guess; }));
    search.between = between(search.bracket);
  }
  const float low = search.bracket.low, high = search.bracket.high;
  if (search.resolved_exactly()) return high;
  gather_candidates(row, vocabulary,
                    [=](float v) { return v >= floor && v > low && v < high; }, candidates);
  const float at_high =
      mass_where(row, vocabulary, largest, [=](float v) { return v >= high; });
  // Keep the smallest candidate whose larger ones, with those from high on, weigh too little.
  float kept = high;
  for (int i = 0; i < candidates.size; ++i) {
    const float value = candidates.value[i];
    float above = at_high;
    for (int n = 0; n < candidates.size; ++n) {
      const float other = candidates.value[n];
      if (other > value) above += exp2f((other - largest) * kLog2E);
    }
    if (above < search.wanted && value < kept) kept = value;
  }
  __syncthreads();
  return kept;
}

}  // namespace dd2
