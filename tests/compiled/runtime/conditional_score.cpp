#include "launchers.h"

#include "cuda/conditional_score.cu"

DD2_EXPORT(conditional_score, ConditionalScoreParams)

extern "C" void set_callbacks(callbacks::Callbacks with) { callbacks::all = with; }

extern "C" long long workspace(const dd2::ConditionalScoreParams* params) {
  return dd2::cuda::conditional_score_workspace(*params);
}
