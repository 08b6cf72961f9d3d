// Arguments of the kernels of the logit student's loss; plain data, shared by every native build.
#pragma once

#include "dd2/teacher_rows.h"

namespace dd2 {

// What a row's gradient needs beside its logits: codes of the teacher's from `smallest` on have the
// probability exp(l - teacher_largest) per_teacher_mass, those of the student's all exp(s -
// student_largest) per_student_mass. A row without a distribution has a NaN among the last two.
struct LogitStatistics {
  float smallest;
  float teacher_largest;
  float per_teacher_mass;
  float student_largest;
  float per_student_mass;
};

// With `loss`, computes KL(p | q) of the teacher's filtered p and the student's q = softmax, and the
// statistics; without, from those, incoming (q - p), the gradient in the student's logits.
struct LogitDistillationLossParams {
  TeacherRows teacher;
  const void* student;          // [rows, vocabulary], rows student_stride elements apart
  float* loss;                  // [rows], NaN for an invalid row
  LogitStatistics* statistics;  // [rows]
  void* gradient;               // [rows, vocabulary] of student_type
  const float* incoming;        // [rows]
  long long student_stride;
  LogitType student_type;
};

}  // namespace dd2
