// A teacher's row of logits as the device kernels read it.
#pragma once

#include "dd2/block.cuh"
#include "dd2/posterior.cuh"
#include "dd2/teacher_rows.h"

namespace dd2 {

// Logits as stored, widened to float.
template <LogitType kType>
struct LogitReader {
  static constexpr int kBytes = kType == LogitType::kFloat32 ? 4 : 2;

  DD2_DEVICE static float widen(unsigned bits) {
    if constexpr (kType == LogitType::kBFloat16) return __uint_as_float(bits << 16);
    // Rescaled by 2^112, exact for subnormals; from 2^16 on it was infinity or NaN.
    const float magnitude = __uint_as_float((bits & 0x7fffu) << 13) * 5.192296858534828e33f;
    const unsigned special = magnitude >= 65536.0f ? 0x7f800000u : 0u;
    return __uint_as_float(__float_as_uint(magnitude) | special | ((bits & 0x8000u) << 16));
  }

  DD2_DEVICE static float read(const void* logits, long long j) {
    if constexpr (kType == LogitType::kFloat32) return static_cast<const float*>(logits)[j];
    return widen(static_cast<const unsigned short*>(logits)[j]);
  }

  // Logits 4 i, ..., 4 i + 3 of a row that begins where four may be read at once.
  DD2_DEVICE static void read_four(const void* logits, int i, float (&out)[4]) {
    if constexpr (kType == LogitType::kFloat32) {
      const float4 v = static_cast<const float4*>(logits)[i];
      out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
    } else {
      const uint2 v = static_cast<const uint2*>(logits)[i];
      out[0] = widen(v.x & 0xffffu), out[1] = widen(v.x >> 16);
      out[2] = widen(v.y & 0xffffu), out[3] = widen(v.y >> 16);
    }
  }
};

// A row's guided logit, computed from memory.
template <LogitType kType>
struct GuidedRow {
  using Reader = LogitReader<kType>;

  const void* cond;
  const void* uncond;  // null for no guidance
  float scale;

  DD2_DEVICE GuidedRow(const TeacherRows& p, long long row)
      : cond(offset(p.logits, row * p.logits_stride)),
        uncond(p.uncond == nullptr ? nullptr : offset(p.uncond, row * p.uncond_stride)),
        scale(p.scale[row]) {}

  DD2_DEVICE static const void* offset(const void* base, long long elements) {
    return static_cast<const char*>(base) + elements * Reader::kBytes;
  }

  DD2_DEVICE float operator()(long long j) const {
    const float value = Reader::read(cond, j);
    if (uncond == nullptr) return value;
    return guided_logit(value, Reader::read(uncond, j), scale, negative_infinity());
  }

  // Whether a row of so many logits can be read four at a time.
  DD2_DEVICE bool has_fours(long long vocabulary) const {
    const auto start = reinterpret_cast<unsigned long long>(cond) |
                       reinterpret_cast<unsigned long long>(uncond);
    return vocabulary % 4 == 0 && start % (4 * Reader::kBytes) == 0;
  }

  // Guided logits 4 i, ..., 4 i + 3 of such a row; where either logit is -inf, -inf, +inf or NaN.
  DD2_DEVICE void read_four(int i, float (&out)[4]) const {
    Reader::read_four(cond, i, out);
    if (uncond == nullptr) return;
    float other[4];
    Reader::read_four(uncond, i, other);
    for (int n = 0; n < 4; ++n) {
      out[n] = fused_multiply_add(scale, out[n] - other[n], other[n]);
    }
  }
};

// Guided logits in shared memory, aligned to 16 bytes and padded to fours with -inf.
struct StagedRow {
  const float* guided;
  DD2_DEVICE float operator()(long long j) const { return guided[j]; }
};

constexpr int kLoadsAhead = 4;

// Calls visit(logit) for this thread's share of a row.
template <typename Row, typename Visit>
DD2_DEVICE void for_each_logit(const Row& row, int vocabulary, const Visit& visit) {
  DD2_UNROLL(kLoadsAhead)
  for (int j = threadIdx.x; j < vocabulary; j += kThreads) visit(row(j));
}

template <typename Visit>
DD2_DEVICE void for_each_logit(const StagedRow& row, int vocabulary, const Visit& visit) {
  const float4* fours = reinterpret_cast<const float4*>(row.guided);
  const int count = (vocabulary + 3) / 4;
  DD2_UNROLL(kLoadsAhead)
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const float4 v = fours[i];
    visit(v.x);
    visit(v.y);
    visit(v.z);
    visit(v.w);
  }
}

}  // namespace dd2
