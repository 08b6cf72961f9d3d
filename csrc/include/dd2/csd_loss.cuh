// The loss of Conditional Score Distillation at one token, from its D and J u: the epilogue of the
// conditional score. One caller sums over all dimensions, or several over `step` apart and combine.
#pragma once

#include "dd2/csd_loss.h"
#include "dd2/posterior.cuh"

namespace dd2 {

constexpr float kSmallestCsdDistance = 1e-5f;

// Sums over dimensions first, first + step, ...
struct CsdSums {
  float value;     // the loss before its weight
  float distance;  // |x - D|
};

DD2_HD CsdSums csd_sums(const CsdLossParams& p, long long row, long long token, long long dim,
                        const float* x0, long long first, long long step) {
  CsdSums sums{0.0f, 0.0f};
  DD2_NO_UNROLL
  for (long long c = first; c < dim; c += step) {
    const float x = p.x[row * dim + c], fake = p.fake[token * dim + c];
    const float difference = x0[c] - fake;
    const float other = p.dmd ? -x : x0[c] - x - p.alpha * difference;
    sums.value = fused_multiply_add(difference, other, sums.value);
    sums.distance += __builtin_fabsf(x - x0[c]);
  }
  return sums;
}

// distance^-power, 1 being SiD's.
DD2_HD float csd_weight(float distance, float power) {
  if (power == 0.0f) return 1.0f;
  const float clamped = distance < kSmallestCsdDistance ? kSmallestCsdDistance : distance;
  return power == 1.0f ? 1.0f / clamped : __builtin_powf(clamped, -power);
}

// Writes the gradients in dimensions first, first + step, ... from the sums over all of them, and
// the caller of first = 0 the loss. `along` is J (F - x), or null: then the gradient is that in D.
DD2_HD void csd_write(const CsdLossParams& p, long long row, long long token, long long dim,
                      const float* x0, const float* along, CsdSums sums, long long first,
                      long long step) {
  const float weight = p.weight != nullptr
                           ? p.weight[token]
                           : csd_weight(sums.distance / static_cast<float>(dim), p.weight_power);
  if (first == 0) p.loss[token] = weight * sums.value;
  DD2_NO_UNROLL
  for (long long c = first; c < dim; c += step) {
    const long long i = token * dim + c;
    const float x = p.x[row * dim + c], difference = x0[c] - p.fake[i];
    const float other = x0[c] - x - p.alpha * difference;
    if (p.grad_x != nullptr) p.grad_x[i] = -weight * difference;
    if (p.grad_fake != nullptr) p.grad_fake[i] = weight * (p.alpha * difference - other);
    if (p.grad_x_t == nullptr) continue;
    p.grad_x_t[i] =
        weight * (along != nullptr ? along[c] : other + (1.0f - p.alpha) * difference);
  }
}

}  // namespace dd2
