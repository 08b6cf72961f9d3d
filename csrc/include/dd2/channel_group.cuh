// Eight neighbouring channels of a pixel as stored.
#pragma once

#include "dd2/mma.cuh"
#include "dd2/teacher_rows.h"

namespace dd2 {

// kVector: all eight are there and lie in whole 16 bytes; else `count` of them, the others are 0.
template <LogitType kType, bool kVector>
struct ChannelGroup {
  static constexpr int kSize = 8;
  static constexpr int kBytes = kType == LogitType::kFloat32 ? 4 : 2;
  static constexpr int kVectors = kSize * kBytes / 16;

  unsigned words[4 * kVectors];

  DD2_DEVICE void load(const void* source, int count) {
    if constexpr (kVector) {
      DD2_UNROLL_ALL
      for (int i = 0; i < kVectors; ++i) {
        const uint4 v = static_cast<const uint4*>(source)[i];
        words[4 * i] = v.x;
        words[4 * i + 1] = v.y;
        words[4 * i + 2] = v.z;
        words[4 * i + 3] = v.w;
      }
    } else {
      DD2_UNROLL_ALL
      for (int i = 0; i < kSize; ++i) {
        if constexpr (kBytes == 4) {
          words[i] = i < count ? static_cast<const unsigned*>(source)[i] : 0u;
        } else {
          const unsigned bits = i < count ? static_cast<const unsigned short*>(source)[i] : 0u;
          words[i / 2] = i % 2 ? words[i / 2] | bits << 16 : bits;
        }
      }
    }
  }

  DD2_DEVICE void store(void* target, int count) const {
    if constexpr (kVector) {
      DD2_UNROLL_ALL
      for (int i = 0; i < kVectors; ++i) {
        static_cast<uint4*>(target)[i] =
            make_uint4(words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
      }
    } else {
      DD2_UNROLL_ALL
      for (int i = 0; i < kSize; ++i) {
        if (i >= count) continue;
        if constexpr (kBytes == 4) {
          static_cast<unsigned*>(target)[i] = words[i];
        } else {
          static_cast<unsigned short*>(target)[i] =
              static_cast<unsigned short>(words[i / 2] >> (16 * (i % 2)));
        }
      }
    }
  }

  DD2_DEVICE float operator[](int i) const {
    if constexpr (kType == LogitType::kFloat32) {
      return __uint_as_float(words[i]);
    } else {
      const unsigned pair = words[i / 2];
      if constexpr (kType == LogitType::kFloat16) {
        return half_to_float(static_cast<unsigned short>(i % 2 ? pair >> 16 : pair));
      }
      return __uint_as_float(i % 2 ? pair & 0xffff0000u : pair << 16);
    }
  }

  // Rounded once.
  DD2_DEVICE void set(const float (&values)[kSize]) {
    DD2_UNROLL_ALL
    for (int i = 0; i < 4 * kVectors; ++i) {
      if constexpr (kType == LogitType::kFloat32) {
        words[i] = __float_as_uint(values[i]);
      } else if constexpr (kType == LogitType::kFloat16) {
        words[i] = pack_halves(values[2 * i], values[2 * i + 1]);
      } else {
        words[i] = pack_bfloat16(values[2 * i], values[2 * i + 1]);
      }
    }
  }
};

}  // namespace dd2
