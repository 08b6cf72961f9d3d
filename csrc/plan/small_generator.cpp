#include "dd2/small_generator.h"

#include "plan.h"

namespace dd2 {

DD2_LAYOUT(small_generator, SmallGeneratorParams)

Plan plan_small_generator(const SmallGeneratorParams& p, const Device& device) {
  if (p.images <= 0 || (p.network.weights == nullptr && p.decoder == nullptr)) return {};
  const long long bytes = SmallMemory(p).floats() * static_cast<long long>(sizeof(float));
  const bool fits = device.holds(bytes);
  // A workspace is for as many images as run side by side.
  const long long blocks = fits || p.images < device.processors ? p.images : device.processors;
  return {{{"small_generator_fwd_kernel", {fits}, {blocks, 1}, kSmallThreads, fits ? bytes : 0}},
          fits ? 0 : blocks * bytes};
}

}  // namespace dd2
