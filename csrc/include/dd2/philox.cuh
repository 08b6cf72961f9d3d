// Philox4x32-10, a counter-based random generator, shared by the CPU, nvcc and NVRTC builds.
// Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
#pragma once

#include "dd2/posterior.cuh"

namespace dd2 {

struct PhiloxWords {
  unsigned word[4];
};

// The upper half of a product.
DD2_HD unsigned multiply_high(unsigned a, unsigned b) {
#ifdef __CUDA_ARCH__
  return __umulhi(a, b);
#else
  return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
#endif
}

DD2_HD PhiloxWords philox(PhiloxWords counter, unsigned key0, unsigned key1) {
  unsigned* c = counter.word;
  for (int round = 0; round < 10; ++round) {
    const unsigned a = 0xD2511F53u, b = 0xCD9E8D57u, low0 = a * c[0], low1 = b * c[2];
    const unsigned high0 = multiply_high(a, c[0]), high1 = multiply_high(b, c[2]);
    c[0] = high1 ^ c[1] ^ key0;
    c[2] = high0 ^ c[3] ^ key1;
    c[1] = low1;
    c[3] = low0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// The uniform in (0, 1) of a row under a seed, with 52 bits: as row_uniform in dd2_fast/ops/philox.py.
DD2_HD double row_uniform(long long seed, long long row, unsigned stream) {
  const unsigned long long key = static_cast<unsigned long long>(seed);
  const unsigned long long index = static_cast<unsigned long long>(row);
  const PhiloxWords counter{
      {0u, static_cast<unsigned>(index), static_cast<unsigned>(index >> 32), stream}};
  const PhiloxWords r =
      philox(counter, static_cast<unsigned>(key), static_cast<unsigned>(key >> 32));
  const unsigned long long bits =
      (static_cast<unsigned long long>(r.word[0]) << 20) | (r.word[1] >> 12);
  return (static_cast<double>(bits) + 0.5) * 0x1p-52;
}

}  // namespace dd2
