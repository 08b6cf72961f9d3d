#include "dd2/group_norm_silu.h"

#include "plan.h"

namespace dd2 {

DD2_LAYOUT(group_norm_silu, GroupNormSiluParams)

Plan plan_group_norm_silu(const GroupNormSiluParams&, const Device&) { return {}; }

}  // namespace dd2
