// The conditional score by tensor cores.
#pragma once

#include "dd2/conditional_score.h"
#include "plan/plan.h"

namespace dd2::cuda {

// Launches one kernel of such a plan, or returns false. Each type of logits is compiled by itself, in
// conditional_score_dense_*.cu, for the time it takes.
template <LogitType kType>
bool run_dense_score(const Launch& launch, const ConditionalScoreParams& params, void* stream);

}  // namespace dd2::cuda
