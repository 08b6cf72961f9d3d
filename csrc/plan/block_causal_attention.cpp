#include "dd2/block_causal_attention.h"

#include "plan.h"

namespace dd2 {

DD2_LAYOUT(block_causal_attention, BlockCausalAttentionParams)

Plan plan_block_causal_attention(const BlockCausalAttentionParams& p, const Device& device) {
  if (p.images <= 0 || p.tokens <= 0) return {};
  const int size = p.size <= 64 ? 64 : 128, rows = attention_rows(size);
  const long long heads = p.heads * p.images;
  const long long large = heads * ceil_divide(p.tokens, 4 * rows);
  const long long small = heads * ceil_divide(p.tokens, 2 * rows);
  // Four warps abreast read keys and values half as often; two fill the device sooner.
  const bool abreast = large >= 2 * device.processors;
  return {{{"block_causal_attention_fwd_kernel", {p.type, size}, {abreast ? large : small, 1},
            kAttentionThreads, attention_shared(p.type, size, abreast ? 4 : 2)}}};
}

}  // namespace dd2
