// What host and device code share, in every native build.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define DD2_HD __host__ __device__ __forceinline__
#else
#define DD2_HD inline __attribute__((always_inline))
#endif

namespace dd2 {

constexpr int kWarp = 32;
constexpr int kThreads = 256;  // of a block, where a kernel does not say otherwise

DD2_HD constexpr long long ceil_divide(long long a, long long b) { return (a + b - 1) / b; }

}  // namespace dd2
