#include "dense_score.cuh"

namespace dd2::cuda {

template bool run_dense_score<LogitType::kFloat16>(const Launch&, const ConditionalScoreParams&, void*);

}  // namespace dd2::cuda
