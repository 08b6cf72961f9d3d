// A teacher's row of logits as the device kernels read it.
#pragma once

#include "dd2/block.cuh"
#include "dd2/mma.cuh"
#include "dd2/posterior.cuh"
#include "dd2/teacher_rows.h"

namespace dd2 {

constexpr int kLoadsAhead = 4;

// Calls visit(load(i), i) for this thread's share of i = 0, ..., count - 1, a few loads ahead.
template <int kBlock = kThreads, typename Load, typename Visit>
DD2_DEVICE void for_each_loaded(int count, const Load& load, const Visit& visit) {
  int i = threadIdx.x;
  DD2_NO_UNROLL
  for (; i + (kLoadsAhead - 1) * kBlock < count; i += kLoadsAhead * kBlock) {
    decltype(load(0)) loaded[kLoadsAhead];
    for (int n = 0; n < kLoadsAhead; ++n) loaded[n] = load(i + n * kBlock);
    for (int n = 0; n < kLoadsAhead; ++n) visit(loaded[n], i + n * kBlock);
  }
  DD2_NO_UNROLL
  for (; i < count; i += kBlock) visit(load(i), i);
}

// Neighbouring logits.
template <int kCount>
struct Logits {
  static constexpr int kSize = kCount;
  float value[kCount];

  // The first, whose place the next takes: in a loop that is not unrolled.
  DD2_DEVICE float shift() {
    const float first = value[0];
    for (int n = 1; n < kCount; ++n) value[n - 1] = value[n];
    return first;
  }
};

// Logits as stored, widened to float.
template <LogitType kType>
struct LogitReader {
  static constexpr int kBytes = kType == LogitType::kFloat32 ? 4 : 2;

  DD2_DEVICE static float widen(unsigned bits) {
    if constexpr (kType == LogitType::kBFloat16) return __uint_as_float(bits << 16);
    return half_to_float(static_cast<unsigned short>(bits));
  }

  DD2_DEVICE static float read(const void* logits, long long j) {
    if constexpr (kType == LogitType::kFloat32) return static_cast<const float*>(logits)[j];
    return widen(static_cast<const unsigned short*>(logits)[j]);
  }
};

// Four neighbours as stored.
template <LogitType kType>
struct StoredFour {
  uint2 words;

  DD2_DEVICE void load(const void* row, int i) { words = static_cast<const uint2*>(row)[i]; }
  DD2_DEVICE Logits<4> widen() const {
    using Reader = LogitReader<kType>;
    return {{Reader::widen(words.x & 0xffffu), Reader::widen(words.x >> 16),
             Reader::widen(words.y & 0xffffu), Reader::widen(words.y >> 16)}};
  }
};

template <>
struct StoredFour<LogitType::kFloat32> {
  float4 words;

  DD2_DEVICE void load(const void* row, int i) { words = static_cast<const float4*>(row)[i]; }
  DD2_DEVICE Logits<4> widen() const { return {{words.x, words.y, words.z, words.w}}; }
};

// A row's guided logit, computed from memory.
template <LogitType kType>
struct GuidedRow {
  static constexpr bool kStreamed = true;
  using Reader = LogitReader<kType>;

  const void* cond;
  const void* uncond;  // null for no guidance
  float scale;

  DD2_DEVICE GuidedRow(const void* logits, const void* others, float weight)
      : cond(logits), uncond(others), scale(weight) {}
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
  DD2_DEVICE bool has_fours(int vocabulary) const {
    const auto start = reinterpret_cast<unsigned long long>(cond) |
                       reinterpret_cast<unsigned long long>(uncond);
    return vocabulary % 4 == 0 && static_cast<unsigned>(start) % (4 * Reader::kBytes) == 0;
  }

  // Logits 4 i, ..., 4 i + 3 of such a row, and the guided ones of them: where either logit is -inf,
  // -inf, +inf or NaN.
  struct Four {
    StoredFour<kType> cond, uncond;
  };
  template <bool kGuided>
  DD2_DEVICE Four load_four(int i) const {
    Four four{};
    four.cond.load(cond, i);
    if (kGuided) four.uncond.load(uncond, i);
    return four;
  }
  template <bool kGuided>
  DD2_DEVICE Logits<4> guide(const Four& four) const {
    Logits<4> logits = four.cond.widen();
    if (!kGuided) return logits;
    const Logits<4> other = four.uncond.widen();
    for (int n = 0; n < 4; ++n) {
      const float u = other.value[n];
      logits.value[n] = fused_multiply_add(scale, logits.value[n] - u, u);
    }
    return logits;
  }
  DD2_DEVICE bool is_guided() const { return uncond != nullptr; }
};

template <LogitType kType>
struct LogitTypeValue {
  static constexpr LogitType value = kType;
};

// use(type), whose value is the type: of a kernel that reads logits of any type.
template <typename Use>
DD2_DEVICE auto with_logit_type(LogitType type, const Use& use) {
  if (type == LogitType::kFloat32) return use(LogitTypeValue<LogitType::kFloat32>());
  if (type == LogitType::kBFloat16) return use(LogitTypeValue<LogitType::kBFloat16>());
  return use(LogitTypeValue<LogitType::kFloat16>());
}

// A row whose type is known at run time, for kernels that read a logit once in many instructions: one
// kernel instead of three.
template <>
struct GuidedRow<LogitType::kAny> {
  static constexpr bool kStreamed = false;
  LogitType type;
  float scale;
  const void* cond;
  const void* uncond;  // null for no guidance

  DD2_DEVICE GuidedRow(const TeacherRows& p, long long row)
      : type(p.logit_type), scale(p.scale[row]), cond(offset(p.logits, row * p.logits_stride)),
        uncond(p.uncond == nullptr ? nullptr : offset(p.uncond, row * p.uncond_stride)) {}

  DD2_DEVICE const void* offset(const void* base, long long elements) const {
    return static_cast<const char*>(base) + elements * (type == LogitType::kFloat32 ? 4 : 2);
  }

  DD2_DEVICE float read(const void* logits, long long j) const {
    if (type == LogitType::kFloat32) return static_cast<const float*>(logits)[j];
    const unsigned short bits = static_cast<const unsigned short*>(logits)[j];
    if (type == LogitType::kBFloat16) return LogitReader<LogitType::kBFloat16>::widen(bits);
    return LogitReader<LogitType::kFloat16>::widen(bits);
  }
  DD2_DEVICE float operator()(long long j) const {
    const float value = read(cond, j);
    if (uncond == nullptr) return value;
    return guided_logit(value, read(uncond, j), scale, negative_infinity());
  }

  // use(the row as a GuidedRow)
  template <typename Use>
  DD2_DEVICE auto with_type(const Use& use) const {
    return with_logit_type(type, [&](auto own) {
      return use(GuidedRow<decltype(own)::value>{cond, uncond, scale});
    });
  }
};

// Guided logits in shared memory, aligned to 16 bytes and padded to fours with -inf.
struct StagedRow {
  const float* guided;
  DD2_DEVICE float operator()(long long j) const { return guided[j]; }
};

// Calls visit(logits), of Logits, for this thread's share of a row.
template <int kBlock = kThreads, typename Row, typename Visit>
DD2_DEVICE void for_each_logits(const Row& row, int vocabulary, const Visit& visit) {
  for_each_loaded<kBlock>(
      vocabulary, [&](int j) { return row(j); },
      [&](float logit, int) { visit(Logits<1>{{logit}}); });
}

template <int kBlock = kThreads, typename Visit>
DD2_DEVICE void for_each_logits(const StagedRow& row, int vocabulary, const Visit& visit) {
  const auto visit_four = [&](float4 v) { visit(Logits<4>{{v.x, v.y, v.z, v.w}}); };
  const float4* mine = reinterpret_cast<const float4*>(row.guided) + threadIdx.x;
  int left = (vocabulary + 3) / 4 - static_cast<int>(threadIdx.x);
  DD2_NO_UNROLL
  for (; left > (kLoadsAhead - 1) * kBlock; left -= kLoadsAhead * kBlock) {
    float4 loaded[kLoadsAhead];
    for (int n = 0; n < kLoadsAhead; ++n) loaded[n] = mine[n * kBlock];
    for (int n = 0; n < kLoadsAhead; ++n) visit_four(loaded[n]);
    mine += kLoadsAhead * kBlock;
  }
  DD2_NO_UNROLL
  for (; left > 0; left -= kBlock, mine += kBlock) visit_four(*mine);
}

}  // namespace dd2
