// The probability-flow ODE from noise to a code on CPUs, rows shared out among threads.

#include "dd2/flow_solve.h"

#include "dispatch.h"
#include "flow_rows.h"

namespace dd2::cpu::DD2_ISA {

void launch_flow_solve(const FlowSolveParams& p, int num_threads) {
  const TeacherRows& teacher = p.teacher;
  if (teacher.rows <= 0 || p.draws <= 0) return;
  const FlowCodes codes(p, num_threads);
  const bool alone = (codes.filtered ? 1 : teacher.rows) * p.draws <= kFewTokens;
  const int64_t block = codes.filtered || p.draws > kQueries ? 1 : kQueries / p.draws;
  const int64_t chunks = (teacher.rows + block - 1) / block;
  PerThread<FlowScratch> all_scratch(num_threads, chunks, codes);
#pragma omp parallel num_threads(all_scratch.threads())
  {
    FlowScratch& scratch = all_scratch.mine();
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < chunks; ++i) {
      const int64_t first = i * block;
      const int64_t last = first + block < teacher.rows ? first + block : teacher.rows;
      solve_rows(p, codes, first, last, alone, scratch);
    }
  }
}

}  // namespace dd2::cpu::DD2_ISA
