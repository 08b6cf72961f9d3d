// Rows of a type that a kernel learns at run time, four neighbours at a time: one loop for all types,
// guided or not, for kernels of which there should not be many.
#pragma once

#include "dd2/filter_row.cuh"

namespace dd2 {

// Four as stored, in two words or four; or widened.
using AnyFour = uint4;

// Values of one of the types of logits.
struct AnyRow {
  char* start;
  int count;
  bool wide;   // float32
  bool brain;  // bfloat16
  bool fours;  // whether they can be read four at a time

  // Elements `first`, ... of `values`.
  DD2_DEVICE AnyRow(const void* values, long long first, int size, LogitType type)
      : start(nullptr),
        count(size),
        wide(type == LogitType::kFloat32),
        brain(type == LogitType::kBFloat16) {
    const int bytes = wide ? 4 : 2;
    start = const_cast<char*>(static_cast<const char*>(values)) + first * bytes;
    const auto address = reinterpret_cast<unsigned long long>(start);
    fours = count % 4 == 0 && static_cast<int>(address & 15) % (4 * bytes) == 0;
  }

  DD2_DEVICE float widen(unsigned bits) const {
    return brain ? LogitReader<LogitType::kBFloat16>::widen(bits)
                 : LogitReader<LogitType::kFloat16>::widen(bits);
  }

  DD2_DEVICE AnyFour load(int i, bool together) const {
    if (!together) return load_one_by_one(i);
    if (wide) return reinterpret_cast<const uint4*>(start)[i];
    const uint2 halves = reinterpret_cast<const uint2*>(start)[i];
    return make_uint4(halves.x, halves.y, 0u, 0u);
  }

  // Beyond the last, -inf.
  DD2_DEVICE AnyFour load_one_by_one(int i) const {
    float v[4];
    for (int n = 0; n < 4; ++n) {
      const int j = 4 * i + n;
      v[n] = j >= count ? negative_infinity()
             : wide     ? reinterpret_cast<const float*>(start)[j]
                        : widen(reinterpret_cast<const unsigned short*>(start)[j]);
    }
    return make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]),
                      __float_as_uint(v[3]));
  }

  DD2_DEVICE Logits<4> widen(const AnyFour& four) const {
    if (wide || !fours) {
      return {{__uint_as_float(four.x), __uint_as_float(four.y), __uint_as_float(four.z),
               __uint_as_float(four.w)}};
    }
    if (brain) return StoredFour<LogitType::kBFloat16>{{four.x, four.y}}.widen();
    return StoredFour<LogitType::kFloat16>{{four.x, four.y}}.widen();
  }

  // Rounded once.
  DD2_DEVICE void store(int i, const Logits<4>& values) const {
    const float(&v)[4] = values.value;
    if (wide && fours) {
      reinterpret_cast<float4*>(start)[i] = make_float4(v[0], v[1], v[2], v[3]);
      return;
    }
    unsigned low, high;
    if (brain) {
      low = pack_bfloat16(v[0], v[1]);
      high = pack_bfloat16(v[2], v[3]);
    } else {
      low = pack_halves(v[0], v[1]);
      high = pack_halves(v[2], v[3]);
    }
    if (fours) {
      reinterpret_cast<uint2*>(start)[i] = {low, high};
      return;
    }
    for (int n = 0; n < 4; ++n) {
      const int j = 4 * i + n;
      if (j >= count) continue;
      if (wide) {
        reinterpret_cast<float*>(start)[j] = v[n];
      } else {
        reinterpret_cast<unsigned short*>(start)[j] =
            static_cast<unsigned short>((n < 2 ? low : high) >> (16 * (n % 2)));
      }
    }
  }
};

// Calls visit(load(i, together), i) for this thread's share of the fours of a row, kAhead loads ahead
// if they can be read together.
template <int kBlock, int kAhead = 2, typename Load, typename Visit>
DD2_DEVICE void for_each_four(int vocabulary, bool fours, const Load& load, const Visit& visit) {
  const int count = (vocabulary + 3) / 4;
  int i = threadIdx.x;
  if (kAhead > 1 && fours) {
    DD2_NO_UNROLL
    for (; i + (kAhead - 1) * kBlock < count; i += kAhead * kBlock) {
      decltype(load(0, true)) loaded[kAhead];
      DD2_UNROLL_ALL
      for (int n = 0; n < kAhead; ++n) loaded[n] = load(i + n * kBlock, true);
      DD2_UNROLL_ALL
      for (int n = 0; n < kAhead; ++n) visit(loaded[n], i + n * kBlock);
    }
  }
  DD2_NO_UNROLL
  for (; i < count; i += kBlock) visit(load(i, fours), i);
}

// A teacher's row of guided logits.
struct AnyGuidedRow {
  AnyRow cond, uncond;
  bool guided;
  float scale;

  struct Four {
    AnyFour cond, uncond;
  };

  DD2_DEVICE AnyGuidedRow(const TeacherRows& p, long long row)
      : cond(p.logits, row * p.logits_stride, static_cast<int>(p.vocabulary), p.logit_type),
        uncond(p.uncond != nullptr ? p.uncond : p.logits,
               row * (p.uncond != nullptr ? p.uncond_stride : p.logits_stride), cond.count,
               p.logit_type),
        guided(p.uncond != nullptr),
        scale(p.scale[row]) {
    cond.fours = uncond.fours = cond.fours && uncond.fours;
  }

  DD2_DEVICE Four load(int i, bool together) const {
    return {cond.load(i, together),
            guided ? uncond.load(i, together) : make_uint4(0u, 0u, 0u, 0u)};
  }

  // kFinite: where either logit is -inf, -inf, +inf or NaN.
  template <bool kFinite>
  DD2_DEVICE Logits<4> guide(const Four& four) const {
    Logits<4> logits = cond.widen(four.cond);
    if (!guided) return logits;
    const Logits<4> others = uncond.widen(four.uncond);
    for (int n = 0; n < 4; ++n) {
      const float c = logits.value[n], u = others.value[n];
      logits.value[n] = kFinite ? fused_multiply_add(scale, c - u, u)
                                : guided_logit(c, u, scale, negative_infinity());
    }
    return logits;
  }
};

// Calls visit(logits), of Logits, for this thread's share of a row that is read anew every time.
template <int kBlock = kThreads, typename Visit>
DD2_DEVICE void for_each_logits(const AnyGuidedRow& row, int vocabulary, const Visit& visit) {
  for_each_four<kBlock, 1>(
      vocabulary, row.cond.fours, [&](int i, bool together) { return row.load(i, together); },
      [&](const AnyGuidedRow::Four& four, int) { visit(row.guide<false>(four)); });
}

// As summarize() of dd2/filter_row.cuh.
template <int kBlock, bool kStaged>
DD2_DEVICE RowSummary summarize(const AnyGuidedRow& row, int vocabulary, float* staged) {
  RowSums sums;
  int finite = vocabulary, bad = 0;
  // Without a look at any logit: right where all are finite and none is beyond the last.
  bool looks = vocabulary % 4 != 0;
  for (;;) {
    sums.clear();
    if (looks) finite = 0;
    for_each_four<kBlock>(
        vocabulary, row.cond.fours, [&](int i, bool together) { return row.load(i, together); },
        [&](const AnyGuidedRow::Four& four, int i) {
          const Logits<4> logits = looks ? row.guide<false>(four) : row.guide<true>(four);
          const float(&v)[4] = logits.value;
          if (kStaged) reinterpret_cast<float4*>(staged)[i] = make_float4(v[0], v[1], v[2], v[3]);
          for (int n = 0; n < 4; ++n) {
            const bool counts = !looks || (v[n] > negative_infinity() && 4 * i + n < vocabulary);
            if (looks && !(v[n] <= kFloatMax)) bad = 1;
            if (looks && counts) ++finite;
            if (counts) sums.add(v[n]);
          }
        });
    const RowSums total = sums.template reduce<kBlock>();
    if (!looks && total.square <= kFloatMax) return summary_of(total, vocabulary, false);
    if (looks) {
      finite = block_sum<kBlock>(finite);
      const bool invalid = block_sum<kBlock>(bad) != 0 || finite == 0;
      return summary_of(total, finite, invalid);
    }
    looks = true;
  }
}

}  // namespace dd2
