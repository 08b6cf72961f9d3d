// The filters of a teacher's row by one block: what is valid, and the smallest logit kept.
#pragma once

#include "dd2/row_threshold.cuh"
#include "dd2/teacher_rows.h"

namespace dd2 {

struct RowFilter {
  float largest;    // logit
  float threshold;  // a code is kept iff its logit is at least this, and not -inf
  bool invalid;     // a NaN or +inf logit, or no code left
};

template <typename Row>
DD2_DEVICE RowFilter filter_row(const Row& row, const TeacherRows& p, Candidates& candidates) {
  const RowSummary summary = summarize(row, p.vocabulary);
  RowFilter filter{summary.stats.largest, negative_infinity(), summary.invalid};
  if (summary.invalid) return filter;
  if (p.top_k > 0 && p.top_k < p.vocabulary) {
    filter.threshold = row_kth_largest(row, p.vocabulary, p.top_k, summary.stats, candidates);
  }
  if (p.top_p < 1.0f) {
    filter.threshold =
        row_nucleus(row, p.vocabulary, filter.threshold, p.top_p, filter.largest, candidates);
  }
  return filter;
}

}  // namespace dd2
