// Box-Muller in double precision, shared by the CPU, nvcc and NVRTC builds:
//
//   u = (word + 1/2) / 2^32,   normals = sqrt(-2 log u) (cos 2 pi u', sin 2 pi u')
//
// Real is double and Bits unsigned long long, or they are SIMD vectors of those. A word is a 32-bit
// number in 64 bits. Being integers, words are reduced exactly; polynomials are Chebyshev fits, whose
// errors are below the rounding of a double.
#pragma once

#include "dd2/posterior.cuh"

namespace dd2 {

template <typename To, typename From>
DD2_HD To same_bits(const From& from) {
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

// An integer below 2^52.
template <typename Real, typename Bits>
DD2_HD Real to_real(const Bits& integer) {
  return same_bits<Real>(integer | 0x4330000000000000ull) - 0x1p52;
}

// -2 log u, by u = 2^k m with m in [sqrt(1/2), sqrt(2)) and log m = 2 atanh((m - 1) / (m + 1)).
template <typename Real, typename Bits>
DD2_HD Real squared_radius(const Bits& word) {
  constexpr unsigned long long kRootHalf = 0x3FE6A09E667F3BCDull, kOne = 0x3FF0000000000000ull;
  const Bits shifted = same_bits<Bits>(to_real<Real>(word) + 0.5) + (kOne - kRootHalf);
  const Real k = to_real<Real>(shifted >> 52) - (1023.0 + 32.0);
  const Real m = same_bits<Real>((shifted & 0xFFFFFFFFFFFFFull) + kRootHalf);
  const Real s = (m - 1.0) / (m + 1.0), z = s * s;
  Real p = z * 0x1.2b5900de53b32p-3 + 0x1.39fe51a7c18f9p-3;
  p = p * z + 0x1.7462b51cb66b1p-3;
  p = p * z + 0x1.c71c62e3f11e6p-3;
  p = p * z + 0x1.2492492df281ap-2;
  p = p * z + 0x1.99999999952d7p-2;
  p = p * z + 0x1.5555555555558p-1;
  constexpr double kLog2 = 0.693147180559945309;
  return (k * kLog2 + (s * z * p + 2.0 * s)) * -2.0;
}

// cos 2 pi u and sin 2 pi u, by 2 pi u = q pi/2 + a with a in [-pi/4, pi/4).
template <typename Real, typename Bits>
DD2_HD void direction(const Bits& word, Real& cosine, Real& sine) {
  const Bits q = (word + 0x20000000ull) >> 30;
  const Real rest = (to_real<Real>(word) + 0.5) - to_real<Real>(q) * 0x1p30;
  const Real a = rest * (6.28318530717958648 * 0x1p-32), z = a * a;
  Real s = z * 0x1.5e0b05bff20f2p-33 - 0x1.ae600aca92c64p-26;
  s = s * z + 0x1.71de379654304p-19;
  s = s * z - 0x1.a01a019e83816p-13;
  s = s * z + 0x1.1111111110bb2p-7;
  s = s * z - 0x1.5555555555555p-3;
  s = s * z * a + a;
  Real c = z * -0x1.907d8f29fe831p-37 + 0x1.1eeb68cd22f56p-29;
  c = c * z - 0x1.27e4fa17bf139p-22;
  c = c * z + 0x1.a01a019f4e9b4p-16;
  c = c * z - 0x1.6c16c16c16967p-10;
  c = c * z + 0x1.5555555555555p-5;
  c = c * z * z + (z * -0.5 + 1.0);
  // A quarter turn swaps them; the second and third quarters negate.
  const Bits c_bits = same_bits<Bits>(c), s_bits = same_bits<Bits>(s);
  const Bits swap = (c_bits ^ s_bits) & -(q & 1ull);
  cosine = same_bits<Real>(c_bits ^ swap ^ ((q + 1ull) & 2ull) << 62);
  sine = same_bits<Real>(s_bits ^ swap ^ (q & 2ull) << 62);
}

}  // namespace dd2
