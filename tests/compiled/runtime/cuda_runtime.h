// What csrc/cuda and csrc/include/dd2 take from CUDA, for a C++ compiler: launchers compile and run,
// and hand what they launch to a callback; kernels only have names, nothing here runs them.
#pragma once

#include <dlfcn.h>

#include <cmath>
#include <cstddef>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static
// With it the headers take the instructions of a device from namespace no_device.
#define DD2_LAUNCHERS_ONLY 1
#define DD2_DYNAMIC_SHARED(type, name) type* name = nullptr

struct uint3 { unsigned x, y, z; };
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

// What bodies of kernels call. Nothing runs them.
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
template <typename T>
T __shfl_xor_sync(unsigned, T value, int) { return value; }
template <typename T>
T __shfl_up_sync(unsigned, T value, unsigned) { return value; }
template <typename T>
T __shfl_sync(unsigned, T value, int, int = 32) { return value; }
inline int atomicAdd(int*, int) { return {}; }
inline int atomicMin(int*, int) { return {}; }
inline int atomicMax(int*, int) { return {}; }
inline bool __all_sync(unsigned, bool) { return {}; }
inline bool __any_sync(unsigned, bool) { return {}; }
inline unsigned __ballot_sync(unsigned, bool) { return {}; }
inline void __syncthreads() {}
inline void __syncwarp(unsigned = ~0u) {}
inline unsigned __funnelshift_l(unsigned, unsigned, unsigned) { return {}; }
inline int __popc(unsigned) { return {}; }
inline int __ffs(int) { return {}; }
inline int __clz(int) { return {}; }
inline unsigned __float2uint_rn(float) { return {}; }
inline float rsqrtf(float) { return {}; }
inline float __logf(float) { return {}; }
inline float __fdividef(float, float) { return {}; }
inline int __float_as_int(float) { return {}; }
inline unsigned __float_as_uint(float) { return {}; }
inline float __int_as_float(int) { return {}; }
inline float __uint_as_float(unsigned) { return {}; }
inline double __dmul_rn(double, double) { return {}; }
inline float __fmul_rn(float, float) { return {}; }
namespace no_device {
inline void add_where(unsigned&, unsigned, float, float) {}
inline unsigned char* shared_address(const void*) { return {}; }
inline void count_in_shared(unsigned char*, unsigned, float, float) {}
template <unsigned>
void add_in_shared(unsigned char*, unsigned) {}
inline void keep_in_shared(unsigned char*&, float, float) {}
template <int>
void tally_in_shared(unsigned char*, unsigned, unsigned) {}
inline float4 load_four_of_shared(unsigned char*) { return {}; }
template <int>
void weigh_in_shared(unsigned char*, unsigned, unsigned, float, float) {}
inline void multiply_add(float (&)[4], const unsigned (&)[4], unsigned, unsigned) {}
inline void multiply_add_bfloat16(float (&)[4], const unsigned (&)[4], unsigned, unsigned) {}
inline void load_matrices(unsigned (&)[4], const unsigned char*) {}
inline void load_matrices_transposed(unsigned (&)[4], const unsigned char*) {}
inline void copy_to_shared(unsigned char*, const void*) {}
inline void copy_to_shared_or_zero(unsigned char*, const void*, bool) {}
inline void wait_for_copies() {}
inline unsigned pack_halves(float, float) { return {}; }
inline float half_to_float(unsigned short) { return {}; }
inline float exp2_flushed(float) { return {}; }
}  // namespace no_device

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorLaunchFailure = 719;
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
struct cudaFuncAttributes { std::size_t sharedSizeBytes; };

namespace callbacks {

// As in native.py; kernels by their mangled names.
struct Callbacks {
  int (*launch)(const char* kernel, const unsigned* grid, const unsigned* block,
                const void* params, std::size_t bytes, std::size_t shared);
  long (*static_shared)(const char* kernel);
  int (*allow_shared)(const char* kernel, int bytes);
  int (*device)(int attribute);
};
inline Callbacks all;

template <typename Kernel>
const char* name_of(Kernel kernel) {
  Dl_info info{};
  dladdr(reinterpret_cast<const void*>(kernel), &info);
  return info.dli_sname;
}

}  // namespace callbacks

inline const char* cudaGetErrorString(cudaError_t status) {
  return status == cudaErrorLaunchFailure ? "the executor found faults" : "invalid argument";
}
inline cudaError_t cudaGetDevice(int* device) { return *device = 0; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = callbacks::all.device(attribute);
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel kernel) {
  attributes->sharedSizeBytes = callbacks::all.static_shared(callbacks::name_of(kernel));
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel kernel, cudaFuncAttribute, int value) {
  return callbacks::all.allow_shared(callbacks::name_of(kernel), value);
}
template <typename Params>
cudaError_t cudaLaunchKernel(void (*kernel)(Params), dim3 grid, dim3 block, void** arguments,
                             std::size_t shared, cudaStream_t) {
  return callbacks::all.launch(callbacks::name_of(kernel), &grid.x, &block.x, arguments[0],
                               sizeof(Params), shared);
}
