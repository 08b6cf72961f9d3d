// Guidance and filters of a row on CPUs, for every operator over a teacher's logits.

#include "row.h"

#include "threshold.h"

namespace dd2::cpu::DD2_ISA {
namespace {

// Running statistics of a row of guided logits; mean and deviation only where a filter asks.
template <bool kMoments>
struct Accumulator {
  Vec largest = broadcast(negative_infinity());
  Vec check{};  // NaN once a value was NaN or +inf
  Vec sum{};
  Vec square{};
  IntVec finite{};

  DD2_INLINE void add(Vec value) {
    largest = max(value, largest);
    check += max(broadcast(-kFloatMax), value) * 0.0f;
    if (!kMoments) return;
    const IntVec is_finite = value > broadcast(negative_infinity());
    const Vec finite_value = is_finite ? value : Vec{};
    finite -= is_finite;
    sum += finite_value;
    square += finite_value * finite_value;
  }

  DD2_INLINE RowStatistics statistics() const {
    if (!kMoments) return {reduce_max(largest), 0.0f, 0.0f};
    const int count = reduce_add(finite);
    const float mean = reduce_add(sum) / count;
    const float variance = reduce_add(square) / count - mean * mean;
    return {reduce_max(largest), mean, __builtin_sqrtf(variance > 0.0f ? variance : 0.0f)};
  }
};

constexpr int64_t kAhead = 1024;  // logits to fetch ahead: processors stop at the end of a page

// A row's guided logits times `factor`, a vector at a time.
template <typename T, bool kGuided>
struct Guide {
  const T* cond;
  const T* uncond;
  Vec scale;
  float factor;

  DD2_INLINE Guide(const TeacherRows& p, int64_t row, float times)
      : cond(static_cast<const T*>(p.logits) + row * p.logits_stride),
        uncond(kGuided ? static_cast<const T*>(p.uncond) + row * p.uncond_stride : nullptr),
        scale(broadcast(p.scale[row])),
        factor(times) {}

  DD2_INLINE Vec at(const T* of_cond, const T* of_uncond) const {
    Vec value = load(of_cond);
    if (kGuided) {
      value = guided_logit(value, load(of_uncond), scale, broadcast(negative_infinity()));
    }
    return value * factor;
  }

  // Calls visit(j, vector) for all `count` logits, the last padded with -inf.
  template <typename Visit>
  DD2_INLINE void for_each(int64_t count, const Visit& visit) const {
    int64_t j = 0;
    for (; j + kLanes <= count; j += kLanes) {
      __builtin_prefetch(cond + j + kAhead);
      if (kGuided) __builtin_prefetch(uncond + j + kAhead);
      visit(j, at(cond + j, uncond + j));
    }
    if (j == count) return;
    const int left = static_cast<int>(count - j);
    T last_cond[kLanes] = {}, last_uncond[kLanes] = {};
    std::memcpy(last_cond, cond + j, left * sizeof(T));
    if (kGuided) std::memcpy(last_uncond, uncond + j, left * sizeof(T));
    Vec value = at(last_cond, last_uncond);
    for (int lane = left; lane < kLanes; ++lane) value[lane] = negative_infinity();
    visit(j, value);
  }
};

// Calls run(Guide) with the type of the row's guided logits.
template <typename Run>
DD2_INLINE void with_guide(const TeacherRows& p, int64_t row, float factor, const Run& run) {
  const auto run_as = [&](auto type) __attribute__((always_inline)) {
    using T = decltype(type);
    if (p.uncond != nullptr) {
      run(Guide<T, true>(p, row, factor));
    } else {
      run(Guide<T, false>(p, row, factor));
    }
  };
  switch (p.logit_type) {
    case LogitType::kFloat32: return run_as(float());
    case LogitType::kBFloat16: return run_as(BFloat16());
    case LogitType::kFloat16: return run_as(Float16());
    case LogitType::kAny: return;  // never stored
  }
}

// Writes `count` guided logits, padded with -inf; sets row.largest and row.invalid.
template <bool kMoments, typename Guide>
DD2_NOINLINE RowStatistics guide_all(const Guide guide, int64_t count, int64_t padded, Row& row) {
  Accumulator<kMoments> total;
  guide.for_each(count, [&](int64_t j, Vec value) __attribute__((always_inline)) {
    total.add(value);
    store(row.guided + j, value);
  });
  for (int64_t j = round_up(count, kLanes); j < padded; j += kLanes) {
    store(row.guided + j, broadcast(negative_infinity()));
  }
  const RowStatistics statistics = total.statistics();
  row.largest = statistics.largest;
  row.invalid = statistics.largest == negative_infinity() || reduce_add(total.check) != 0.0f;
  return statistics;
}

constexpr int kSampled = 32;      // one vector in so many is looked at before the others
constexpr int64_t kSample = 256;  // values from which a sample tells enough
constexpr int64_t kSamplingPays = 8;  // times k: how many codes make up for the sample's search

// The top k of `count` logits, to row.values and row.indices, without a pass that writes them all: a
// sample gives a threshold that the k-th largest most likely (at three standard deviations) reaches,
// and what reaches it is searched. False where less than k do, or the row has too few or no such.
template <typename Guide>
DD2_NOINLINE bool keep_top_k(const Guide guide, int64_t count, int64_t k, float* sample, Row& row) {
  const int64_t sampled = count / (kSampled * kLanes) * kLanes;
  if (sampled < kSample || count < kSamplingPays * k) return false;
  Accumulator<true> of_sample;
  for (int64_t i = 0; i < sampled; i += kLanes) {
    const Vec value = guide.at(guide.cond + i * kSampled, guide.uncond + i * kSampled);
    of_sample.add(value);
    store(sample + i, value);
  }
  const float expected = static_cast<float>(k) * sampled / count;
  const int64_t rank = static_cast<int64_t>(expected + 3.0f * __builtin_sqrtf(expected)) + 1;
  if (rank >= sampled) return false;
  const float lowest = kth_largest(sample, sampled, sampled, rank, of_sample.statistics());
  if (!(lowest >= -kFloatMax)) return false;
  const Vec limit = broadcast(lowest);
  Accumulator<false> total;
  int64_t kept = 0;
  guide.for_each(count, [&](int64_t j, Vec value) __attribute__((always_inline)) {
    total.add(value);
    const IntVec keep = value >= limit;
    compress(keep, lane_numbers() + static_cast<int32_t>(j), row.indices + kept);
    kept += compress(keep, value, row.values + kept);
  });
  row.largest = reduce_max(total.largest);
  row.invalid = reduce_add(total.check) != 0.0f;
  if (row.invalid) return true;
  if (kept < k) return false;
  store(row.values + kept, broadcast(negative_infinity()));
  Accumulator<true> of_kept;
  const int64_t padded = round_up(kept, kLanes);
  for (int64_t i = 0; i < padded; i += kLanes) of_kept.add(load(row.values + i));
  const float threshold = kth_largest(row.values, padded, kept, k, of_kept.statistics());
  row.kept = keep_at_least(row.values, row.indices, padded, threshold, row.values, row.indices);
  return true;
}

}  // namespace

void guide_row(const TeacherRows& p, int64_t row, int64_t padded, float* guided) {
  const int64_t count = p.vocabulary;
  with_guide(p, row, 1.0f, [&](const auto& guide) __attribute__((always_inline)) {
    guide.for_each(count, [&](int64_t j, Vec value) __attribute__((always_inline)) {
      store(guided + j, value);
    });
  });
  for (int64_t j = round_up(count, kLanes); j < padded; j += kLanes) {
    store(guided + j, broadcast(negative_infinity()));
  }
}

void prepare_row(const TeacherRows& p, int64_t row, Row& out, RowBuffers& buffers,
                 bool sparse_only, float factor) {
  const int64_t padded = buffers.padded;
  const bool filters_k = p.top_k > 0 && p.top_k < p.vocabulary;
  bool kept_k = false;
  RowStatistics stats;
  with_guide(p, row, factor, [&](const auto& guide) __attribute__((always_inline)) {
    kept_k = sparse_only && filters_k &&
             keep_top_k(guide, p.vocabulary, p.top_k, buffers.mass.get(), out);
    if (kept_k) return;
    stats = p.filtered() ? guide_all<true>(guide, p.vocabulary, padded, out)
                         : guide_all<false>(guide, p.vocabulary, padded, out);
  });
  out.compressed = sparse_only;
  if (out.invalid) return;
  float threshold = negative_infinity();
  if (!kept_k) {
    if (filters_k) threshold = kth_largest(out.guided, padded, p.vocabulary, p.top_k, stats);
    // -inf is never kept, whatever the threshold.
    const float lowest = threshold > -kFloatMax ? threshold : -kFloatMax;
    out.kept = p.vocabulary;
    if (threshold > negative_infinity() || p.top_p < 1.0f || sparse_only) {
      out.kept = keep_at_least(out.guided, nullptr, padded, lowest, out.values, out.indices);
    }
  }
  if (p.top_p < 1.0f) {
    const int64_t kept_padded = round_up(out.kept, kLanes);
    const float total = exponentiate(out.values, buffers.mass.get(), kept_padded, out.largest);
    threshold = nucleus_threshold(out.values, buffers.mass.get(), kept_padded, out.largest,
                                  p.top_p * total);
    out.kept =
        keep_at_least(out.values, out.indices, kept_padded, threshold, out.values, out.indices);
  }
  const bool filtered = threshold > negative_infinity();
  out.compressed = sparse_only || (filtered && out.kept * 4 < p.vocabulary);
  if (out.compressed || !filtered) return;
  for (int64_t j = 0; j < padded; j += kLanes) {
    const Vec value = load(out.guided + j);
    store(out.guided + j, value >= broadcast(threshold) ? value : broadcast(negative_infinity()));
  }
}

}  // namespace dd2::cpu::DD2_ISA
