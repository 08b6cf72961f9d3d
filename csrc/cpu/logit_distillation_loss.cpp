// The logit student's loss and its gradient on CPUs: a thread takes a row of both, in cache.
//
// With masses m_j = exp(l_j - max l) of the teacher's kept codes, e_j = exp(s_j - max s) of the
// student's, and their sums M and E
//
//   loss = sum_j m_j ((l_j - max l) - (s_j - max s)) / M + log(E / M),   gradient = e / E - m / M

#include "dd2/logit_distillation_loss.h"

#include "dispatch.h"
#include "row.h"
#include "simd.h"

namespace dd2::cpu::DD2_ISA {
namespace {

using Params = LogitDistillationLossParams;

constexpr int64_t kBlock = 16 * kLanes;  // values summed in single precision; blocks in double

struct Scratch {
  RowBuffers rows;        // of one row
  Buffer<float> student;  // [padded]

  explicit Scratch(int64_t padded) : rows(1, padded), student(allocate<float>(padded)) {}
};

template <typename T>
DD2_INLINE Vec load_some(const T* source, int64_t count, float beyond) {
  T last[kLanes] = {};
  std::memcpy(last, source, static_cast<size_t>(count) * sizeof(T));
  Vec value = load(last);
  for (int64_t lane = count; lane < kLanes; ++lane) value[lane] = beyond;
  return value;
}

// Reads a student's row, padded with -inf; its largest logit, or NaN where one is NaN or +inf, or
// none is finite.
template <typename T>
DD2_NOINLINE float read_student(const T* source, int64_t count, float* student) {
  Vec largest = broadcast(negative_infinity()), check{};
  const auto take = [&](int64_t j, Vec value) __attribute__((always_inline)) {
    largest = max(value, largest);
    check += max(broadcast(-kFloatMax), value) * 0.0f;
    store(student + j, value);
  };
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) take(j, load(source + j));
  if (j < count) take(j, load_some(source + j, count - j, negative_infinity()));
  const float found = reduce_max(largest);
  return found == negative_infinity() || reduce_add(check) != 0.0f ? quiet_nan() : found;
}

DD2_NOINLINE double sum_student(const float* student, int64_t padded, float largest) {
  double sum = 0.0;
  for (int64_t begin = 0; begin < padded; begin += kBlock) {
    const int64_t end = padded - begin < kBlock ? padded : begin + kBlock;
    Vec total{};
    for (int64_t i = begin; i < end; i += kLanes) {
      total += exp2_nonpositive((load(student + i) - largest) * kLog2E);
    }
    sum += reduce_add(total);
  }
  return sum;
}

struct TeacherSums {
  double mass;
  double terms;    // of the loss
  float smallest;  // logit that has mass
};

// Over the kept codes, or all of a row that is not compressed.
template <bool kCompressed>
DD2_NOINLINE TeacherSums sum_teacher(const Row& row, int64_t padded, const float* student,
                                     float largest) {
  const float* logits = kCompressed ? row.values : row.guided;
  TeacherSums sums{};
  Vec smallest = broadcast(kFloatMax);
  for (int64_t begin = 0; begin < padded; begin += kBlock) {
    const int64_t end = padded - begin < kBlock ? padded : begin + kBlock;
    Vec total{}, terms{};
    for (int64_t i = begin; i < end; i += kLanes) {
      const Vec logit = load(logits + i), below = logit - row.largest;
      const Vec mass = exp2_nonpositive(below * kLog2E);
      Vec s;
      if constexpr (kCompressed) {
        for (int lane = 0; lane < kLanes; ++lane) s[lane] = student[row.indices[i + lane]];
      } else {
        s = load(student + i);
      }
      const IntVec has_mass = mass > Vec{};
      total += mass;
      // Of the others the difference may be NaN.
      terms += has_mass ? mass * (below - (s - largest)) : Vec{};
      smallest = has_mass & (logit < smallest) ? logit : smallest;
    }
    sums.mass += reduce_add(total);
    sums.terms += reduce_add(terms);
  }
  sums.smallest = -reduce_max(-smallest);
  return sums;
}

template <typename T>
void solve_row(const Params& p, int64_t r, Scratch& scratch) {
  const int64_t count = p.teacher.vocabulary, padded = scratch.rows.padded;
  Row row = scratch.rows.row(0);
  // Few codes are gathered; many are read side by side.
  prepare_row(p.teacher, r, row, scratch.rows, 0 < p.teacher.top_k && p.teacher.top_k < count / 4);
  float* student = scratch.student.get();
  const float largest =
      read_student(static_cast<const T*>(p.student) + r * p.student_stride, count, student);
  if (row.invalid || largest != largest) {
    p.loss[r] = quiet_nan();
    p.statistics[r] = {0.0f, 0.0f, quiet_nan(), 0.0f, quiet_nan()};
    return;
  }
  const double of_student = sum_student(student, padded, largest);
  TeacherSums teacher;
  if (row.compressed) {
    const int64_t kept = round_up(row.kept, kLanes);
    for (int64_t i = row.kept; i < kept; ++i) row.indices[i] = 0;
    teacher = sum_teacher<true>(row, kept, student, largest);
  } else {
    teacher = sum_teacher<false>(row, padded, student, largest);
  }
  p.loss[r] = static_cast<float>(teacher.terms / teacher.mass +
                                 __builtin_log(of_student / teacher.mass));
  p.statistics[r] = {teacher.smallest, row.largest, static_cast<float>(1.0 / teacher.mass), largest,
                     static_cast<float>(1.0 / of_student)};
}

// A row's gradient, by its guided logits in `guided`.
template <typename T>
DD2_NOINLINE void differentiate_row(const Params& p, int64_t r, const float* guided) {
  const int64_t count = p.teacher.vocabulary;
  const T* student = static_cast<const T*>(p.student) + r * p.student_stride;
  T* gradient = static_cast<T*>(p.gradient) + r * count;
  const LogitStatistics row = p.statistics[r];
  const float of_teacher = p.incoming[r] * row.per_teacher_mass;
  const float of_student = p.incoming[r] * row.per_student_mass;
  const auto at = [&](int64_t j, Vec s) __attribute__((always_inline)) {
    const Vec logit = load(guided + j);
    const Vec e = exp2_nonpositive((s - row.student_largest) * kLog2E);
    const Vec m = exp2_nonpositive((logit - row.teacher_largest) * kLog2E);
    return e * of_student - (logit >= broadcast(row.smallest) ? m : Vec{}) * of_teacher;
  };
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) store(gradient + j, at(j, load(student + j)));
  if (j == count) return;
  T last[kLanes];
  store(last, at(j, load_some(student + j, count - j, 0.0f)));
  std::memcpy(gradient + j, last, static_cast<size_t>(count - j) * sizeof(T));
}

// `student_type` is T's.
template <typename T>
void solve_rows(const Params& p, PerThread<Scratch>& all_scratch) {
#pragma omp parallel num_threads(all_scratch.threads())
  {
    Scratch& scratch = all_scratch.mine();
#pragma omp for schedule(dynamic, 4)
    for (int64_t r = 0; r < p.teacher.rows; ++r) {
      if (p.loss != nullptr) {
        solve_row<T>(p, r, scratch);
      } else {
        guide_row(p.teacher, r, scratch.rows.padded, scratch.student.get());
        differentiate_row<T>(p, r, scratch.student.get());
      }
    }
  }
}

}  // namespace

void launch_logit_distillation_loss(const Params& p, int num_threads) {
  if (p.teacher.rows <= 0) return;
  PerThread<Scratch> scratch(num_threads, p.teacher.rows, round_up(p.teacher.vocabulary, kLanes));
  switch (p.student_type) {
    case LogitType::kBFloat16: return solve_rows<BFloat16>(p, scratch);
    case LogitType::kFloat16: return solve_rows<Float16>(p, scratch);
    default: return solve_rows<float>(p, scratch);
  }
}

}  // namespace dd2::cpu::DD2_ISA
