#include "dd2/logit_distillation_loss.h"

#include "plan.h"

namespace dd2 {

DD2_LAYOUT(logit_distillation_loss, LogitDistillationLossParams)

// For the loss the teacher's rows are staged in shared memory where they fit, as those that codes are
// drawn from; for the gradient a block streams a row.
Plan plan_logit_distillation_loss(const LogitDistillationLossParams& p, const Device& device) {
  const long long rows = p.teacher.rows;
  if (rows <= 0) return {};
  if (p.loss == nullptr) return {{{"logit_distillation_gradient_kernel", {}, {rows, 1}, kThreads, 0}}};
  const long long row = row_bytes(p.teacher);
  const bool staged = device.holds(row);
  const int threads = p.teacher.filter_threads(staged);
  return {{{"logit_distillation_loss_fwd_kernel", {threads, staged}, {rows, 1}, threads,
            staged ? row : 0}}};
}

}  // namespace dd2
