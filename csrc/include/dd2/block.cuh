// Block-wide collectives of the device kernels, for blocks of kBlock threads.
#pragma once

#include "dd2/host_device.h"

#ifndef DD2_LAUNCHERS_ONLY
#define DD2_DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]
#endif

#define DD2_DEVICE __device__ __forceinline__

namespace dd2 {

constexpr int kWarps = kThreads / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;

DD2_DEVICE int warp_index() { return static_cast<int>(threadIdx.x) / kWarp; }
DD2_DEVICE int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }

template <typename T, typename Combine>
DD2_DEVICE T warp_reduce(T value, Combine combine) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value = combine(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  return value;
}

// The combination of every thread's value, in a fixed order, for every thread.
template <int kBlock = kThreads, typename T, typename Combine>
DD2_DEVICE T block_reduce(T value, Combine combine) {
  __shared__ T partial[kBlock / kWarp];
  value = warp_reduce(value, combine);
  __syncthreads();
  if (lane_index() == 0) partial[warp_index()] = value;
  __syncthreads();
  T total = partial[0];
  for (int w = 1; w < kBlock / kWarp; ++w) total = combine(total, partial[w]);
  return total;
}

struct Add {
  template <typename T>
  DD2_DEVICE T operator()(T a, T b) const {
    return a + b;
  }
};

struct Max {
  template <typename T>
  DD2_DEVICE T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

struct FloatMax {
  DD2_DEVICE float operator()(float a, float b) const { return fmaxf(a, b); }
};

struct Min {
  template <typename T>
  DD2_DEVICE T operator()(T a, T b) const {
    return a < b ? a : b;
  }
};

template <int kBlock = kThreads, typename T>
DD2_DEVICE T block_sum(T value) {
  return block_reduce<kBlock>(value, Add());
}

// The sum of the values of the threads before this one, and of all.
template <typename T>
struct Scan {
  T before;
  T total;
};

// Adds the value of the lane `offset` below, where there is one: the shuffle says so itself.
DD2_DEVICE void add_from_below(unsigned& value, int offset) {
#ifdef __CUDA_ARCH__
  asm volatile(
      "{\n\t"
      ".reg .pred is_there;\n\t"
      ".reg .u32 other;\n\t"
      "shfl.sync.up.b32 other|is_there, %0, %1, 0, -1;\n\t"
      "@is_there add.u32 %0, %0, other;\n\t"
      "}" : "+r"(value) : "r"(offset));
#endif
}
DD2_DEVICE void add_from_below(unsigned long long& value, int offset) {
#ifdef __CUDA_ARCH__
  asm volatile(
      "{\n\t"
      ".reg .pred is_there;\n\t"
      ".reg .u32 low, high;\n\t"
      ".reg .u64 other;\n\t"
      "mov.b64 {low, high}, %0;\n\t"
      "shfl.sync.up.b32 low|is_there, low, %1, 0, -1;\n\t"
      "shfl.sync.up.b32 high, high, %1, 0, -1;\n\t"
      "mov.b64 other, {low, high};\n\t"
      "@is_there add.u64 %0, %0, other;\n\t"
      "}" : "+l"(value) : "r"(offset));
#endif
}

// Sums of the first `lanes` lanes, each with those before it; of unsigned integers.
template <typename T>
DD2_DEVICE T warp_scan(T value, int lanes) {
  for (int offset = 1; offset < lanes; offset *= 2) add_from_below(value, offset);
  return value;
}

template <int kBlock = kThreads, typename T>
DD2_DEVICE Scan<T> block_scan(T value) {
  constexpr int kWarps = kBlock / kWarp;
  __shared__ T totals[kWarps];
  const T sum = warp_scan(value, kWarp);
  __syncthreads();
  if (lane_index() == kWarp - 1) totals[warp_index()] = sum;
  __syncthreads();
  const T warps = warp_scan(totals[lane_index() % kWarps], kWarps);
  const T earlier = __shfl_sync(kAllLanes, warps, Max()(warp_index() - 1, 0));
  return {sum - value + (warp_index() > 0 ? earlier : T{0}),
          __shfl_sync(kAllLanes, warps, kWarps - 1)};
}

// Where this thread's flag stands among the set flags of the block, and how many there are.
struct Position {
  int index;
  int total;
};

DD2_DEVICE Position block_position(bool flag) {
  __shared__ int counts[kWarps];
  const unsigned votes = __ballot_sync(kAllLanes, flag);
  __syncthreads();
  if (lane_index() == 0) counts[warp_index()] = __popc(votes);
  __syncthreads();
  Position p{__popc(votes & ((1u << lane_index()) - 1u)), 0};
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp_index()) p.index += counts[w];
    p.total += counts[w];
  }
  return p;
}

}  // namespace dd2
