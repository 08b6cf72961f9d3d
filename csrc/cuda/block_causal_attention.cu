#include "dd2/block_causal_attention.cuh"

#include "launch.h"
#include "run.h"

namespace dd2::cuda {

void launch_block_causal_attention(const BlockCausalAttentionParams& p, void* stream) {
  run_all(plan_block_causal_attention(p, current_device()), [&](const Launch& launch) {
    return run<LogitTypes, Values<64, 128>>(DD2_KERNEL(block_causal_attention_fwd_kernel), launch, p,
                                            stream);
  });
}

}  // namespace dd2::cuda
