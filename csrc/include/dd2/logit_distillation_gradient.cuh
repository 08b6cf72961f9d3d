// The gradient of the logit student's loss on NVIDIA GPUs: a block streams a row of all three logits
// and writes what it becomes.
#pragma once

#include "dd2/any_row.cuh"
#include "dd2/logit_distillation_loss.h"

namespace dd2 {

// grid (rows)
__global__ void __launch_bounds__(kThreads, 4)
    logit_distillation_gradient_kernel(const LogitDistillationLossParams p) {
  struct Four {
    AnyFour student;
    AnyGuidedRow::Four teacher;
  };
  const long long row = blockIdx.x;
  const int vocabulary = static_cast<int>(p.teacher.vocabulary);
  const AnyGuidedRow teacher(p.teacher, row);
  const AnyRow student(p.student, row * p.student_stride, vocabulary, p.student_type);
  const AnyRow gradient(p.gradient, row * vocabulary, vocabulary, p.student_type);
  const LogitStatistics of = p.statistics[row];
  const float of_teacher = -p.incoming[row] * of.per_teacher_mass;
  const float of_student = p.incoming[row] * of.per_student_mass;
  for_each_four<kThreads>(
      vocabulary, student.fours && teacher.cond.fours,
      [&](int i, bool together) {
        // Each by itself where one of them cannot be read in fours.
        return Four{student.load(i, together || student.fours),
                    teacher.load(i, together || teacher.cond.fours)};
      },
      [&](const Four& four, int i) {
        const Logits<4> s = student.widen(four.student);
        const Logits<4> logits = teacher.guide<true>(four.teacher);
        Logits<4> slopes;
        for (int n = 0; n < 4; ++n) {
          const float logit = logits.value[n];
          const float e = exp2_flushed((s.value[n] - of.student_largest) * kLog2E);
          const float m = exp2_flushed((logit - of.teacher_largest) * kLog2E);
          // Of a valid row only what a -inf rules out is NaN or above the largest.
          const bool keeps = logit >= of.smallest && logit <= of.teacher_largest;
          slopes.value[n] = fused_multiply_add(e, of_student, (keeps ? m : 0.0f) * of_teacher);
        }
        gradient.store(i, slopes);
      });
}

}  // namespace dd2
