// csrc/cuda/image_normal.cu and its kernel on the CPU.
#include "named_kernels.h"

#include "cuda/image_normal.cu"

using namespace dd2;

constexpr NamedKernel<ImageNormalParams> kKernels[] = {DD2_KERNEL(image_normal_fwd_kernel)};

DD2_EXPORT(image_normal, ImageNormalParams, kKernels)

extern "C" void box_muller(unsigned radius_word, unsigned angle_word, double* out) {
  out[0] = squared_radius<double>(static_cast<unsigned long long>(radius_word));
  direction(static_cast<unsigned long long>(angle_word), out[1], out[2]);
}
