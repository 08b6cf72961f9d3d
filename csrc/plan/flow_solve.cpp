#include "dd2/flow_solve.h"

#include "dd2/conditional_score.h"
#include "plan.h"

namespace dd2 {

DD2_LAYOUT(flow_solve, FlowSolveParams)

// Blocks share the draws of a row where the rows alone leave multiprocessors idle; rows are staged in
// shared memory where they fit.
Plan plan_flow_solve(const FlowSolveParams& p, const Device& device) {
  const TeacherRows& teacher = p.teacher;
  if (teacher.rows <= 0 || p.draws <= 0) return {};
  const long long wanted = ceil_divide(2 * device.processors, teacher.rows);
  const int width = p.dim <= 8 ? 8 : 32;
  const long long vectors =
      (width == 8 ? vector_floats<8>(p) : vector_floats<32>(p)) * sizeof(float);
  const long long row = row_bytes(teacher);
  const bool staged = device.holds(vectors + row);
  return {{{"flow_solve_fwd_kernel", {width, staged},
            {teacher.rows, wanted < p.draws ? wanted : p.draws}, kThreads,
            staged ? vectors + row : vectors}}};
}

}  // namespace dd2
