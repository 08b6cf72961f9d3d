// Per-row maths of the conditional score, shared by the CPU, nvcc and NVRTC builds.
//
//   w_j ∝ p_j exp(-|x_t - (1-t) c_j|^2 / (2 t^2)),   x0 = sum_j w_j c_j
//
// The exponent is kept times 2 t^2 until the row's maximum is subtracted:
//
//   s_j = 2 t^2 (l_j - max l) - |x_t - (1-t) c_j|^2,   w_j ∝ exp((s_j - max s) / (2 t^2))
//
// so it stays finite however small t is, and logits far from zero lose no digits.
#pragma once

#include "dd2/host_device.h"
#include "dd2/nvrtc.cuh"

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define DD2_PRAGMA(text) _Pragma(#text)
#define DD2_UNROLL(count) DD2_PRAGMA(unroll count)
#define DD2_NO_UNROLL _Pragma("unroll 1")  // of a short loop, which would cost registers
#else
#define DD2_UNROLL(count)
#define DD2_NO_UNROLL
#endif

namespace dd2 {

constexpr float kFloatMax = 3.402823466e38f;
constexpr float kFloatTiny = 1.175494351e-38f;
constexpr float kLog2E = 1.442695040888963407f;

DD2_HD float negative_infinity() { return -__builtin_huge_valf(); }
DD2_HD float quiet_nan() { return __builtin_nanf(""); }
DD2_HD float fused_multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

// For SIMD vectors: the compiler contracts it where the target has the instruction.
template <typename T>
DD2_HD T fused_multiply_add(T a, T b, T c) {
  return a * b + c;
}

// l_uncond + s (l_cond - l_uncond); a code that either logit rules out (-inf) is out.
// T is float, or a SIMD vector of floats.
template <typename T>
DD2_HD T guided_logit(T cond, T uncond, T scale, T minus_infinity) {
  const T guided = fused_multiply_add(scale, cond - uncond, uncond);
  return (cond == minus_infinity) | (uncond == minus_infinity) ? minus_infinity : guided;
}

// What the noise level of one token contributes.
struct NoiseLevel {
  float signal;    // 1 - t
  float two_t2;    // 2 t^2, kept normal
  float exponent;  // log2(e) / (2 t^2): exp((s - max) / (2 t^2)) = exp2((s - max) exponent)
  float jacobian;  // (1-t) / t^2, kept finite

  NoiseLevel() = default;
  DD2_HD explicit NoiseLevel(float t) {
    const float raw = 2.0f * t * t;
    signal = 1.0f - t;
    two_t2 = raw < kFloatTiny ? kFloatTiny : raw;
    exponent = kLog2E / two_t2;
    jacobian = 2.0f * signal / two_t2;
  }
};

}  // namespace dd2
