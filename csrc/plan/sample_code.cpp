#include "dd2/sample_code.h"

#include "plan.h"

namespace dd2 {

DD2_LAYOUT(sample_code, SampleCodeParams)

// Rows are staged in shared memory where they fit, by as many threads as hide the reads of all rows
// that a multiprocessor then holds, and no more: what does not depend on the row's length costs each
// of them the same.
Plan plan_sample_code(const SampleCodeParams& p, const Device& device) {
  if (p.teacher.rows <= 0) return {};
  const long long row = row_bytes(p.teacher);
  const bool staged = device.holds(row);
  const int threads = p.teacher.filter_threads(staged);
  const LogitType type = staged ? LogitType::kAny : p.teacher.logit_type;
  return {{{"sample_code_fwd_kernel", {type, threads, staged}, {p.teacher.rows, 1}, threads,
            staged ? row : 0}}};
}

}  // namespace dd2
