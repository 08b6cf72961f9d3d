#include "dd2/nearest_code.h"

#include "plan.h"

namespace dd2 {

DD2_LAYOUT(nearest_code, NearestCodeParams)

Plan plan_nearest_code(const NearestCodeParams& p, const Device& device) {
  if (p.rows <= 0) return {};
  // A block of few tokens takes a ninth of the time of one of many, counted in the machine code for
  // sm_90a, not measured: few it is where the others would fill half the multiprocessors at most.
  const bool few = 2 * ceil_divide(p.rows, nearest_block_tokens(false)) <= device.processors;
  const long long blocks = ceil_divide(p.rows, nearest_block_tokens(few));
  const int width = p.dim <= 8 ? 8 : 32;
  return {{{"nearest_code_fwd_kernel", {width, p.dim > width, few}, {blocks, 1}, kThreads, 0}}};
}

}  // namespace dd2
