// The noise of images on CPUs: one Philox counter a lane, and so two pairs of normals.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cmath>
#include <cstdint>
#include <cstring>

#include "dd2/box_muller.cuh"
#include "dd2/image_normal.h"
#include "simd.h"

namespace dd2::cpu::DD2_ISA {
namespace {

constexpr int kWide = kLanes / 2;             // lanes of 64 bits
constexpr int kDrawn = 4 * kWide;             // numbers drawn at a time

typedef double Real __attribute__((vector_size(8 * kWide)));
typedef unsigned long long Bits __attribute__((vector_size(8 * kWide)));
typedef float Single __attribute__((vector_size(4 * kWide)));

// The products of the low halves of the lanes. (Masked, as GCC 12 warns of the plain intrinsics.)
DD2_INLINE Bits multiply_low(Bits a, Bits b) {
#if defined(__AVX512F__)
  return (Bits)_mm512_maskz_mul_epu32(0xFF, (__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Bits)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
  return (Bits)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xFFFFFFFFull) * (b & 0xFFFFFFFFull);
#endif
}

DD2_INLINE Real square_root(Real x) {
#if defined(__AVX512F__)
  return (Real)_mm512_maskz_sqrt_pd(0xFF, (__m512d)x);
#elif defined(__AVX2__)
  return (Real)_mm256_sqrt_pd((__m256d)x);
#elif defined(__x86_64__)
  return (Real)_mm_sqrt_pd((__m128d)x);
#else
  for (int lane = 0; lane < kWide; ++lane) x[lane] = std::sqrt(x[lane]);
  return x;
#endif
}

DD2_INLINE Bits every_lane(unsigned long long value) { return value + Bits{}; }

// As dd2::philox, with a word in the low half of a lane; the high halves hold anything until the end.
DD2_INLINE void philox_lanes(Bits (&c)[4], uint64_t key) {
  Bits key0 = every_lane(key), key1 = every_lane(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const Bits p0 = multiply_low(c[0], every_lane(0xD2511F53u));
    const Bits p1 = multiply_low(c[2], every_lane(0xCD9E8D57u));
    c[0] = (p1 >> 32) ^ c[1] ^ key0;
    c[2] = (p0 >> 32) ^ c[3] ^ key1;
    c[1] = p1;
    c[3] = p0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  for (Bits& word : c) word &= 0xFFFFFFFFull;
}

// kDrawn numbers of an image's counters from `first` on.
DD2_INLINE void draw(const ImageNormalParams& p, int64_t image, int64_t first, float* out) {
  const auto key = static_cast<uint64_t>(p.seeds != nullptr ? p.seeds[image] : p.seed);
  const auto index = static_cast<uint64_t>(p.indices[image]);
  Bits c[4] = {every_lane(first), every_lane(index), every_lane(index >> 32),
               every_lane(p.stream)};
  for (int lane = 0; lane < kWide; ++lane) c[0][lane] += lane;
  philox_lanes(c, key);
  Single normals[4];
  for (int k = 0; k < 4; k += 2) {
    const Real radius = square_root(squared_radius<Real>(c[k]));
    Real cosine, sine;
    direction(c[k + 1], cosine, sine);
    normals[k] = __builtin_convertvector(radius * cosine, Single);
    normals[k + 1] = __builtin_convertvector(radius * sine, Single);
  }
  for (int lane = 0; lane < kWide; ++lane) {
    for (int k = 0; k < 4; ++k) out[4 * lane + k] = normals[k][lane];
  }
}

// As draw, of which `left` numbers are wanted.
DD2_INLINE void draw_some(const ImageNormalParams& p, int64_t image, int64_t first, int64_t left,
                          float* out) {
  if (left >= kDrawn) {
    draw(p, image, first, out);
  } else {
    float last[kDrawn];
    draw(p, image, first, last);
    std::memcpy(out, last, static_cast<size_t>(left) * sizeof(float));
  }
}

}  // namespace
}  // namespace dd2::cpu::DD2_ISA
