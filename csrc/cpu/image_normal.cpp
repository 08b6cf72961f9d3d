// The noise of images on CPUs.

#include "dispatch.h"
#include "image_noise.h"

namespace dd2::cpu::DD2_ISA {

constexpr int64_t kParallelNumbers = 1 << 14;  // fewer are no work for a second thread

void launch_image_normal(const ImageNormalParams& p, int num_threads) {
  const int64_t draws = (p.count + kDrawn - 1) / kDrawn;
#pragma omp parallel for collapse(2) schedule(static) num_threads(num_threads) \
    if (p.images * p.count >= kParallelNumbers)
  for (int64_t image = 0; image < p.images; ++image) {
    for (int64_t i = 0; i < draws; ++i) {
      draw_some(p, image, i * kWide, p.count - i * kDrawn, p.out + image * p.count + i * kDrawn);
    }
  }
}

}  // namespace dd2::cpu::DD2_ISA
