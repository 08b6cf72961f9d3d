#include "dd2/nearest_code.cuh"

#include "check.h"
#include "launch.h"

namespace dd2::cuda {

void launch_nearest_code(const NearestCodeParams& p, void* stream) {
  if (p.rows <= 0) return;
  const dim3 grid(static_cast<unsigned>((p.rows + kBlockTokens - 1) / kBlockTokens));
  const auto kernel = p.dim <= 8    ? nearest_code_fwd_kernel<8, false>
                      : p.dim <= 32 ? nearest_code_fwd_kernel<32, false>
                                    : nearest_code_fwd_kernel<32, true>;
  launch(kernel, grid, kThreads, 0, static_cast<cudaStream_t>(stream), p, "nearest_code");
}

}  // namespace dd2::cuda
