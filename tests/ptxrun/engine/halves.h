// Halves and their pairs: computed wider, rounded once.
#pragma once

#include <cmath>

#include "engine.h"

namespace ptxrun {

inline f16 half_of(double x, f16) { return static_cast<f16>(x); }
inline bf16 half_of(double x, bf16) {
  // To odd first, so that the second rounding is the only one that counts.
  float y = static_cast<float>(x);
  if (static_cast<double>(y) != x && y == y && !std::isinf(y)) {
    if ((std::fabs(static_cast<double>(y)) > std::fabs(x))) y = float_of(bits_of(y) - 1);
    y = float_of(bits_of(y) | 1);
  }
  return to_bf16(y);
}
template <typename H>
struct Pair {
  H low, high;
};

}  // namespace ptxrun
