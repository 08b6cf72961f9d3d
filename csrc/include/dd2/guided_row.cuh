// A teacher's row of logits as the device kernels read it.
#pragma once

#include "dd2/block.cuh"
#include "dd2/posterior.cuh"
#include "dd2/teacher_rows.h"

namespace dd2 {

// Logits as stored, widened to float.
template <LogitType kType>
struct LogitReader {
  DD2_DEVICE static float read(const void* logits, long long j) {
    if constexpr (kType == LogitType::kFloat32) {
      return static_cast<const float*>(logits)[j];
    } else if constexpr (kType == LogitType::kBFloat16) {
      const unsigned bits = static_cast<const unsigned short*>(logits)[j];
      return __uint_as_float(bits << 16);
    } else {
      // Rescaled by 2^112, exact for subnormals; from 2^16 on it was infinity or NaN.
      const unsigned bits = static_cast<const unsigned short*>(logits)[j];
      const float magnitude = __uint_as_float((bits & 0x7fffu) << 13) * 5.192296858534828e33f;
      const unsigned special = magnitude >= 65536.0f ? 0x7f800000u : 0u;
      return __uint_as_float(__float_as_uint(magnitude) | special | ((bits & 0x8000u) << 16));
    }
  }
};

// A row's guided logit, computed from memory.
template <LogitType kType>
struct GuidedRow {
  static constexpr int kUnroll = 4;  // loads in flight

  const void* cond;
  const void* uncond;  // null for no guidance
  float scale;

  DD2_DEVICE GuidedRow(const TeacherRows& p, long long row)
      : cond(offset(p.logits, row * p.logits_stride)),
        uncond(p.uncond == nullptr ? nullptr : offset(p.uncond, row * p.uncond_stride)),
        scale(p.scale[row]) {}

  DD2_DEVICE static const void* offset(const void* base, long long elements) {
    constexpr int kBytes = kType == LogitType::kFloat32 ? 4 : 2;
    return static_cast<const char*>(base) + elements * kBytes;
  }

  DD2_DEVICE float operator()(long long j) const {
    const float value = LogitReader<kType>::read(cond, j);
    if (uncond == nullptr) return value;
    return guided_logit(value, LogitReader<kType>::read(uncond, j), scale, negative_infinity());
  }
};

struct StagedRow {
  static constexpr int kUnroll = 1;  // shared memory is near, registers are few

  const float* guided;  // shared memory
  DD2_DEVICE float operator()(long long j) const { return guided[j]; }
};

// Copies a row's logits to shared memory.
template <typename Row>
DD2_DEVICE void stage_row(const Row& row, long long vocabulary, float* staged) {
  for (long long j = threadIdx.x; j < vocabulary; j += kThreads) staged[j] = row(j);
  __syncthreads();
}

}  // namespace dd2
