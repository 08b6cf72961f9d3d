#include "dd2/nearest_code.cuh"

#include "check.h"
#include "launch.h"

namespace dd2::cuda {
namespace {

constexpr const char* kOp = "nearest_code";

template <bool kFew>
void launch_tokens(const NearestCodeParams& p, cudaStream_t stream) {
  constexpr int kBlockTokens = NearestShape<kFew>::kBlockTokens;
  const dim3 grid(static_cast<unsigned>((p.rows + kBlockTokens - 1) / kBlockTokens));
  const auto kernel = p.dim <= 8    ? nearest_code_fwd_kernel<8, false, kFew>
                      : p.dim <= 32 ? nearest_code_fwd_kernel<32, false, kFew>
                                    : nearest_code_fwd_kernel<32, true, kFew>;
  launch(kernel, grid, kThreads, 0, stream, p, kOp);
}

}  // namespace

void launch_nearest_code(const NearestCodeParams& p, void* stream) {
  if (p.rows <= 0) return;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  nearest_code_few(p.rows, processor_count(kOp)) ? launch_tokens<true>(p, cuda_stream)
                                                 : launch_tokens<false>(p, cuda_stream);
}

}  // namespace dd2::cuda
