#include "dd2/group_norm_silu.h"

#include <algorithm>
#include <cstdint>

#include "plan.h"

namespace dd2 {

DD2_LAYOUT(group_norm_silu, GroupNormSiluParams)

namespace {

constexpr long long kFewestPixels = 16;  // of a thread: with less, putting parts together prevails
constexpr long long kMoments = 2 * sizeof(float);

bool in_vectors(const GroupNormSiluParams& p) {
  std::uintptr_t bits = static_cast<std::uintptr_t>(p.channels % kNormGroup);
  for (const void* map : {p.x, p.residual, static_cast<const void*>(p.sum),
                          static_cast<const void*>(p.y)}) {
    bits |= reinterpret_cast<std::uintptr_t>(map) % 16;
  }
  return bits == 0;
}

}  // namespace

Plan plan_group_norm_silu(const GroupNormSiluParams& p, const Device& device) {
  if (p.images <= 0 || p.pixels <= 0) return {};
  const NormTiling tiling(p.channels);
  // Every block reads what all of its image's made: an image has no more than fill the device twice.
  const long long most = std::min(2 * device.processors, ceil_divide(8 * device.processors, p.images));
  const long long blocks = std::min(ceil_divide(p.pixels, kFewestPixels * tiling.rows), most);
  const bool vectors = in_vectors(p), residual = p.residual != nullptr, silu = p.silu != 0;
  const long long grid = p.images * blocks;
  return {{{"norm_moments_kernel", {p.type, residual, vectors}, {grid, 1}, kThreads,
            kMoments * tiling.rows * p.channels},
           {"group_norm_silu_fwd_kernel", {p.type, silu, vectors}, {grid, 1}, kThreads,
            kMoments * p.groups}},
          grid * p.groups * kMoments};
}

}  // namespace dd2
