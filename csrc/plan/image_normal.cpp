#include "dd2/image_normal.h"

#include "dd2/host_device.h"
#include "plan.h"

namespace dd2 {

DD2_LAYOUT(image_normal, ImageNormalParams)

Plan plan_image_normal(const ImageNormalParams& p, const Device&) {
  const long long threads = p.images * ceil_divide(p.count, 4);
  if (threads <= 0) return {};
  return {{{"image_normal_fwd_kernel", {}, {ceil_divide(threads, kThreads), 1}, kThreads, 0}}};
}

}  // namespace dd2
