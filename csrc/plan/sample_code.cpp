#include "dd2/sample_code.h"

#include "plan.h"

namespace dd2 {

DD2_LAYOUT(sample_code, SampleCodeParams)

// Rows are staged in shared memory where they fit.
Plan plan_sample_code(const SampleCodeParams& p, const Device& device) {
  if (p.teacher.rows <= 0) return {};
  const long long row = row_bytes(p.teacher);
  const bool staged = device.holds(row);
  return {{{"sample_code_fwd_kernel", {p.teacher.logit_type, staged}, {p.teacher.rows, 1}, kThreads,
            staged ? row : 0}}};
}

}  // namespace dd2
