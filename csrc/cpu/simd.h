// One register of floats in GCC's vector extension, as wide as the target of this compilation:
// the CPU kernels are compiled once for each instruction set (see dispatch.h).
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#include <immintrin.h>
#endif

#include "dd2/posterior.cuh"

#define DD2_INLINE inline __attribute__((always_inline))
#define DD2_NOINLINE __attribute__((noinline))  // a hot loop whose variables shall stay in registers

namespace dd2::cpu::DD2_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes)));
typedef uint32_t UintVec __attribute__((vector_size(4 * kLanes)));
typedef uint16_t HalfVec __attribute__((vector_size(2 * kLanes)));

// Not 0 + value, which is an addition for value = -0.
DD2_INLINE Vec broadcast(float value) { return value - Vec{}; }

DD2_INLINE Vec load(const float* source) {
  Vec v;
  std::memcpy(&v, source, sizeof(v));
  return v;
}

DD2_INLINE void store(float* target, Vec v) { std::memcpy(target, &v, sizeof(v)); }

DD2_INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

DD2_INLINE UintVec load_bits(const void* source) {
  HalfVec half;
  std::memcpy(&half, source, sizeof(half));
  return __builtin_convertvector(half, UintVec);
}

DD2_INLINE Vec load(const BFloat16* source) { return (Vec)(load_bits(source) << 16); }

// Exponent and mantissa shifted into place and rescaled by 2^112, exact for subnormals too;
// what lands at 2^16 or above was infinity or NaN.
DD2_INLINE Vec load(const Float16* source) {
  const UintVec bits = load_bits(source);
  const Vec magnitude = (Vec)((bits & 0x7fffu) << 13) * broadcast(0x1p112f);
  const UintVec special = (UintVec)(magnitude >= broadcast(65536.0f)) & 0x7f800000u;
  return (Vec)((UintVec)magnitude | special | ((bits & 0x8000u) << 16));
}

DD2_INLINE void store_bits(void* target, UintVec bits) {
  const HalfVec half = __builtin_convertvector(bits, HalfVec);
  std::memcpy(target, &half, sizeof(half));
}

// Rounded to nearest, ties to even; NaN stays one.
DD2_INLINE void store(BFloat16* target, Vec v) {
  const UintVec bits = (UintVec)v;
  const UintVec rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  store_bits(target, v == v ? rounded : (bits >> 16 | 0x40u));
}

// Likewise. What is subnormal in halves has the place of its last bit after 0.5 is added.
DD2_INLINE void store(Float16* target, Vec v) {
  const UintVec magnitude = (UintVec)v & 0x7fffffffu;
  const UintVec normal = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - (112u << 23)) >> 13;
  const UintVec subnormal = (UintVec)((Vec)magnitude + 0.5f) - 0x3f000000u;
  UintVec bits = (Vec)magnitude < broadcast(0x1p-14f) ? subnormal : normal;
  bits = (Vec)magnitude < broadcast(65520.0f) ? bits : UintVec{} + 0x7c00u;
  bits = v == v ? bits : UintVec{} + 0x7e00u;
  store_bits(target, bits | ((UintVec)v >> 16 & 0x8000u));
}

// 2^x on [-1/2, 1/2]: degree-5 minimax, relative error 2e-7.
DD2_INLINE Vec exp2_fraction(Vec x) {
  Vec p = broadcast(1.32546026725322e-3f);
  p = p * x + 9.671999141573906e-3f;
  p = p * x + 5.550779402256012e-2f;
  p = p * x + 2.4022231996059418e-1f;
  p = p * x + 6.931469440460205e-1f;
  return p * x + 1.0f;
}

// 2^x for x <= 0; 0 below 2^-126 and for NaN.
DD2_INLINE Vec exp2_nonpositive(Vec x) {
#if defined(__AVX512F__)
  const __mmask16 normal = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-126.0f), _CMP_GE_OQ);
  const Vec whole = (Vec)_mm512_maskz_roundscale_ps(normal, (__m512)x, _MM_FROUND_TO_NEAREST_INT);
#else
  x = max(x, broadcast(-127.0f));
  const Vec shifted = x + broadcast(0x1.8p23f);
  const Vec whole = shifted - broadcast(0x1.8p23f);
#endif
  const Vec fraction = x - whole;
  const Vec p = exp2_fraction(fraction);
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_scalef_ps(normal, (__m512)p, (__m512)whole);
#else
  const IntVec exponent = ((IntVec)shifted << 23) + (127 << 23);
  return p * (Vec)exponent;
#endif
}

// 2^x, for x beyond +-126 what it is there.
DD2_INLINE Vec exp2_within(Vec x) {
  x = max(x, broadcast(-126.0f));
  x = x < broadcast(126.0f) ? x : broadcast(126.0f);
  const Vec shifted = x + broadcast(0x1.8p23f);
  const Vec fraction = x - (shifted - broadcast(0x1.8p23f));
  const Vec p = exp2_fraction(fraction);
  return (Vec)((IntVec)p + ((IntVec)shifted << 23));
}

// x / (1 + exp(-x)).
DD2_INLINE Vec silu(Vec x) { return x / (exp2_within(x * -kLog2E) + 1.0f); }

// Folds a vector of `n` lanes onto its first lane.
template <typename T, int n, typename Combine>
DD2_INLINE T fold(const T (&lanes)[n], const Combine& combine) {
  if constexpr (n == 1) {
    return lanes[0];
  } else {
    typedef T Half __attribute__((vector_size(n / 2 * sizeof(T))));
    Half half[2];
    std::memcpy(half, lanes, sizeof(half));
    const Half folded = combine(half[0], half[1]);
    T rest[n / 2];
    std::memcpy(rest, &folded, sizeof(rest));
    return fold<T, n / 2>(rest, combine);
  }
}

template <typename T, typename V, typename Combine>
DD2_INLINE T fold(V v, const Combine& combine) {
  T lanes[kLanes];
  std::memcpy(lanes, &v, sizeof(v));
  return fold<T, kLanes>(lanes, combine);
}

DD2_INLINE float reduce_add(Vec v) {
  return fold<float>(v, [](auto a, auto b) { return a + b; });
}

DD2_INLINE float reduce_max(Vec v) {
  return fold<float>(v, [](auto a, auto b) { return a > b ? a : b; });
}

DD2_INLINE int reduce_add(IntVec v) {
  return fold<int32_t>(v, [](auto a, auto b) { return a + b; });
}

// Whether any lane of a comparison is true.
DD2_INLINE bool any(IntVec v) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  return _mm512_movepi32_mask((__m512i)v) != 0;
#else
  return fold<int32_t>(v, [](auto a, auto b) { return a | b; }) != 0;
#endif
}

// Of blocks of kBlock lanes within kSpan: the even (or odd) ones of a, then of b.
template <int kBlock, int kSpan, bool kOdd>
DD2_INLINE Vec every_other(Vec a, Vec b) {
  IntVec from;
  for (int lane = 0; lane < kLanes; ++lane) {
    const int block = lane % kSpan / kBlock, half = kSpan / kBlock / 2;
    from[lane] = lane / kSpan * kSpan + (2 * (block % half) + kOdd) * kBlock + lane % kBlock +
                 (block < half ? 0 : kLanes);
  }
  return __builtin_shuffle(a, b, from);
}

// A vector whose lane i is the sum of the lanes of of(first + i): n of them at a time are folded into
// four lanes each, then into one.
template <int n = kLanes, typename Of>
DD2_INLINE Vec lane_sums(const Of& of, int first = 0) {
  if constexpr (n == 1) {
    return of(first);
  } else {
    const Vec a = lane_sums<n / 2>(of, first), b = lane_sums<n / 2>(of, first + n / 2);
    constexpr int kBlock = n <= 4 ? 1 : 4, kSpan = n <= 4 ? 4 : kLanes;
    return every_other<kBlock, kSpan, false>(a, b) + every_other<kBlock, kSpan, true>(a, b);
  }
}

DD2_INLINE IntVec lane_numbers() {
  IntVec v;
  for (int lane = 0; lane < kLanes; ++lane) v[lane] = lane;
  return v;
}

// Writes the lanes of v where `keep` is set side by side and returns how many; may write, but never
// counts, up to kLanes beyond them.
template <typename T, typename V>
DD2_INLINE int compress(IntVec keep, V v, T* out) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  const __mmask16 mask = _mm512_movepi32_mask((__m512i)keep);
  _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(mask, (__m512i)v));
  return __builtin_popcount(mask);
#else
  T lanes[kLanes];
  int32_t kept[kLanes];
  std::memcpy(lanes, &v, sizeof(v));
  std::memcpy(kept, &keep, sizeof(keep));
  int count = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    out[count] = lanes[lane];
    count -= kept[lane];
  }
  return count;
#endif
}

}  // namespace dd2::cpu::DD2_ISA
