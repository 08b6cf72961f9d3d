// The logit student's loss on NVIDIA GPUs: one block a row of both.
//
// The teacher's row is staged in shared memory where it fits, and its threshold found there. Then one
// pass over the student's row, whose largest logit is known at its end alone: the sums are relative to
// the largest so far.
#pragma once

#include "dd2/any_row.cuh"
#include "dd2/filter_row.cuh"
#include "dd2/logit_distillation_loss.h"

namespace dd2 {

struct DivergenceSums {
  float largest;  // logit of the student's
  float student;  // sum of e = exp(s - largest)
  float teacher;  // sum of m = exp(l - the teacher's largest) of the kept codes
  float terms;    // sum of m ((l - the teacher's largest) - (s - largest))

  DD2_DEVICE void clear() {
    largest = -kFloatMax;
    student = teacher = terms = 0.0f;
  }

  // The same relative to a logit that is at least the largest.
  DD2_DEVICE void raise(float to) {
    student *= exp2_flushed((largest - to) * kLog2E);
    // The distance may be infinite where nothing was there.
    const float distance = teacher > 0.0f ? to - largest : 0.0f;
    terms = fused_multiply_add(teacher, distance, terms);
    largest = to;
  }

  DD2_DEVICE void add(const RowFilter& filter, const Logits<4>& logits, const Logits<4>& others) {
    const float(&s)[4] = others.value;
    raise(fmaxf(fmaxf(fmaxf(s[0], s[1]), fmaxf(s[2], s[3])), largest));
    for (int n = 0; n < 4; ++n) {
      const float logit = logits.value[n], below = logit - filter.largest, apart = s[n] - largest;
      student += exp2_flushed(apart * kLog2E);
      const float all = exp2_flushed(below * kLog2E);
      const float mass = logit >= filter.threshold ? all : 0.0f;
      teacher += mass;
      // Without mass the difference may be infinite or NaN.
      const float difference = mass > 0.0f ? below - apart : 0.0f;
      terms = fused_multiply_add(mass, difference, terms);
    }
  }

  DD2_DEVICE void add(const DivergenceSums& other) {
    student += other.student;
    teacher += other.teacher;
    terms += other.terms;
  }

  // Those of the block, for its first thread.
  template <int kBlock>
  DD2_DEVICE DivergenceSums reduce() const {
    constexpr int kWarps = kBlock / kWarp;
    __shared__ float4 partial[kWarps];
    DivergenceSums sums = *this;
    sums.raise(warp_reduce(largest, FloatMax()));
    sums.student = warp_reduce(sums.student, Add());
    sums.teacher = warp_reduce(sums.teacher, Add());
    sums.terms = warp_reduce(sums.terms, Add());
    if (lane_index() == 0) {
      partial[warp_index()] = make_float4(sums.largest, sums.student, sums.teacher, sums.terms);
    }
    __syncthreads();
    if (threadIdx.x > 0) return sums;
    float most = sums.largest;
    for (int w = 1; w < kWarps; ++w) most = fmaxf(partial[w].x, most);
    sums.raise(most);
    for (int w = 1; w < kWarps; ++w) {
      DivergenceSums other{partial[w].x, partial[w].y, partial[w].z, partial[w].w};
      other.raise(most);
      sums.add(other);
    }
    return sums;
  }
};

DD2_DEVICE void write_divergence(const LogitDistillationLossParams& p, long long row,
                                 const RowFilter& filter, const DivergenceSums& sums) {
  // A NaN or +inf in the student's row makes a NaN; without a finite logit nothing is there.
  const bool valid = !filter.invalid && sums.student > 0.0f;
  const float nan = quiet_nan();
  p.loss[row] =
      valid ? sums.terms / sums.teacher + __builtin_logf(sums.student / sums.teacher) : nan;
  p.statistics[row] = {filter.threshold, filter.largest, valid ? 1.0f / sums.teacher : nan,
                       sums.largest, valid ? 1.0f / sums.student : nan};
}

// grid (rows). kStaged: the teacher's row fits in shared memory, staged_floats. The blocks of a
// multiprocessor leave 64 registers a thread.
template <int kBlock, bool kStaged>
__global__ void __launch_bounds__(kBlock, 1024 / kBlock)
    logit_distillation_loss_fwd_kernel(const LogitDistillationLossParams p) {
  DD2_DYNAMIC_SHARED(float, staged);
  __shared__ Selection<kBlock> selection;
  const long long row_index = blockIdx.x;
  const int vocabulary = static_cast<int>(p.teacher.vocabulary);
  const AnyGuidedRow row(p.teacher, row_index);
  selection.clear();
  const RowSummary summary = summarize<kBlock, kStaged>(row, vocabulary, staged);
  RowFilter filter;
  if constexpr (kStaged) {
    filter = filter_summarized(StagedRow{staged}, p.teacher, summary, selection);
  } else {
    filter = filter_summarized(row, p.teacher, summary, selection);
  }
  const AnyRow student(p.student, row_index * p.student_stride, vocabulary, p.student_type);
  DivergenceSums sums;
  sums.clear();
  if (!filter.invalid) {
    for_each_four<kBlock>(
        vocabulary, student.fours, [&](int i, bool together) { return student.load(i, together); },
        [&](const AnyFour& four, int i) {
          Logits<4> logits;
          if constexpr (kStaged) {
            const float4 v = reinterpret_cast<const float4*>(staged)[i];
            logits = {{v.x, v.y, v.z, v.w}};
          } else {
            logits = row.guide<false>(row.load(i, row.cond.fours));
          }
          sums.add(filter, logits, student.widen(four));
        });
  }
  const DivergenceSums total = sums.template reduce<kBlock>();
  if (threadIdx.x == 0) write_divergence(p, row_index, filter, total);
}

}  // namespace dd2
