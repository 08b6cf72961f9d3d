#include "dense_launch.cuh"

namespace dd2::cuda {

template void launch_dense_score<LogitType::kBFloat16>(const ConditionalScoreParams&, cudaStream_t);

}  // namespace dd2::cuda
