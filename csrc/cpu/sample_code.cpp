// One categorical draw a row on CPUs.

#include "dd2/sample_code.h"

#include "dd2/philox.cuh"
#include "dispatch.h"
#include "draw_code.h"

namespace dd2::cpu::DD2_ISA {

void launch_sample_code(const SampleCodeParams& p, int num_threads) {
  const TeacherRows& teacher = p.teacher;
  if (teacher.rows <= 0) return;
  PerThread<DrawBuffers> all_scratch(num_threads, teacher.rows, round_up(teacher.vocabulary, kLanes));
#pragma omp parallel num_threads(all_scratch.threads())
  {
    DrawBuffers& scratch = all_scratch.mine();
#pragma omp for schedule(dynamic, 4)
    for (int64_t r = 0; r < teacher.rows; ++r) {
      Row row = scratch.rows.row(0);
      prepare_row(teacher, r, row, scratch.rows, true, p.inverse_temperature);
      p.out[r] = row.invalid ? -1
                             : draw_code(row, scratch.rows.mass.get(), scratch.ends.get(),
                                         row_uniform(p.seed[r * p.seed_stride],
                                                     p.index != nullptr ? p.index[r] : r,
                                                     kSampleStream));
    }
  }
}

}  // namespace dd2::cpu::DD2_ISA
